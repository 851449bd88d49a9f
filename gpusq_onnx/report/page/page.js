"use strict";
const value = (cell) => {
  const text = cell.textContent.trim();
  const found = /^[~+]?(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : null;
};
const compare = (a, b) => {
  const [x, y] = [value(a), value(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1;
  return a.textContent.localeCompare(b.textContent);
};
for (const head of document.querySelectorAll("thead th")) {
  if (!head.textContent.trim()) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  head.setAttribute("aria-sort", "none");
  button.addEventListener("click", () => {
    const row = head.parentNode;
    const column = [...row.children].indexOf(head);
    const body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of row.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => sign * compare(a.cells[column], b.cells[column]));
    body.append(...rows);
  });
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.open = true;
    one.dataset.closed = "";
  }
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-closed]")) one.open = false;
});
