"use strict";
// A click on a heading sorts by its column, a second click reverses; missing values stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const falling = heading.ariaSort === "ascending";
    for (const other of heading.parentElement.cells) other.ariaSort = "none";
    heading.ariaSort = falling ? "descending" : "ascending";
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const [m, n] = [Number(x), Number(y)];
      const order = isNaN(m) || isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n;
      return falling ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
// Pointing at a run's row shows only its curve.
for (const row of document.querySelectorAll("tr[data-run]")) {
  const show = (on) => () => {
    for (const curve of document.querySelectorAll("g[id*='-run-']")) {
      curve.classList.toggle("faint", on && !curve.id.endsWith("-" + row.dataset.run));
    }
  };
  for (const event of ["mouseenter", "focusin"]) row.addEventListener(event, show(true));
  for (const event of ["mouseleave", "focusout"]) row.addEventListener(event, show(false));
}
