"""The static site: its pages from what the repository holds, and a page and a widget to change a request and look.

May use what `mmchar.study` may, and its modules. `build.build_site` makes the site, `widgets.explorer` the widget;
`make site` and ``notebooks/explore.ipynb`` call them. Layout, styles and scripts lie in ``docs/conf.py`` and
``docs/site/``.
"""
