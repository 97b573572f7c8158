// Every table of more than two rows can be sorted: a button in the last row of its head, by mouse or by keyboard.
"use strict";

// The cells of a body as a full grid: a cell that spans rows stands in each of them.
function grid(body) {
  const rows = [...body.rows].map(() => []);
  [...body.rows].forEach((row, i) => {
    for (const cell of row.cells) {
      let column = 0;
      while (rows[i][column]) column++;
      for (let down = 0; down < cell.rowSpan; down++) {
        for (let right = 0; right < cell.colSpan; right++) rows[i + down][column + right] = cell;
      }
    }
  });
  return rows;
}

// Where a cell spans rows, every row gets a copy of it, so that rows can move.
function unspan(body) {
  const cells = grid(body);
  [...body.rows].forEach((row, i) => {
    const own = cells[i].map((cell) => (cell.parentNode === row && cell.rowSpan === 1 ? cell : cell.cloneNode(true)));
    own.forEach((cell) => { cell.rowSpan = 1; });
    row.replaceChildren(...own);
  });
}

const number = (text) => {
  const plain = text.replace(/[,\s%]/g, "").replace(/^\+/, "");
  const found = plain.match(/^-?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? parseFloat(found[0]) : NaN;
};

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return a.localeCompare(b, "en", { numeric: true });
  if (Number.isNaN(x)) return 1;
  return Number.isNaN(y) ? -1 : x - y;
}

function sort(table, head, column) {
  const body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  if (body.querySelector("[rowspan]")) unspan(body);
  const rows = [...body.rows].map((row) => [row.cells[column]?.textContent.trim() ?? "", row]);
  rows.sort(([a], [b]) => (down === "ascending" ? compare(a, b) : compare(b, a)));
  body.append(...rows.map(([, row]) => row));
  table.querySelectorAll("th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down);
}

// The last row of a head names the columns. pandas writes the names of an index into one more row: they are moved up,
// where the name of all columns may have stood.
function names(table) {
  const rows = [...table.tHead.rows];
  const last = rows.pop();
  const ofIndex = rows.length && [...last.cells].some((cell) => !cell.textContent.trim());
  if (!ofIndex) return [...last.cells].map((cell) => [cell, cell.colSpan]);
  const row = rows.pop();
  [...last.cells].forEach((cell, i) => {
    if (cell.textContent.trim()) row.cells[i].replaceChildren(...cell.childNodes);
  });
  last.remove();
  return [...row.cells].map((cell) => [cell, cell.colSpan]);
}

function sortable(table) {
  if (!table.tHead || !table.tBodies.length || table.closest(".dt-container")) return;
  const columns = names(table);
  if (table.tBodies[0].rows.length < 3) return;
  let column = 0;
  for (const [cell, wide] of columns) {
    const at = column;
    column += wide;
    const label = cell.textContent.trim();
    if (wide > 1 || !label) continue;
    const button = document.createElement("button");
    button.className = "sort";
    button.type = "button";
    button.title = "Sort by " + label;
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(table, cell, at));
    cell.replaceChildren(button);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.dataframe, table.docutils, .output.text_html table")) {
    sortable(table);
    const around = table.closest(".table-wrapper, .output.text_html");
    if (around) { around.tabIndex = 0; around.setAttribute("role", "region"); around.setAttribute("aria-label", "Table"); }
  }
});
