"""An error in one line, and the name that was perhaps meant."""

from mmchar.faults import did_you_mean, said_by, text_of, typed


def test_an_error_is_one_line_of_at_most_so_many_characters():
    error = RuntimeError("no\n  kernel " + 400 * "x")
    assert text_of(error, 11) == "no kernel x"
    assert typed(error, 16) == "RuntimeError: no"
    assert len(text_of(error)) == 300


def test_the_type_is_said_where_an_error_is_none_of_ours():
    assert said_by(ValueError("height=7 does not fit")) == "height=7 does not fit"
    assert said_by(KeyError("height")) == "KeyError: 'height'"
    assert said_by(ValueError()) == "ValueError: "


def test_a_name_that_is_nearly_a_known_one_is_meant():
    assert did_you_mean("heigth", ("height", "width")) == "did you mean 'height'? "
    assert did_you_mean("colour", ("height", "width")) == ""
