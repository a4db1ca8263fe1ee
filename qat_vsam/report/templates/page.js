(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripting");

  const theme = document.getElementById("theme");
  const night = matchMedia("(prefers-color-scheme: dark)");
  let dark = night.matches;
  const show = (chosen) => {
    dark = chosen;
    root.style.colorScheme = dark === night.matches ? "" : dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
  };
  // a printed page is always light, and the style sheet says so once no style stands on the root itself
  addEventListener("beforeprint", () => { root.style.colorScheme = ""; });
  addEventListener("afterprint", () => show(dark));
  theme.addEventListener("click", () => show(!dark));
  night.addEventListener("change", () => show(night.matches));
  theme.hidden = false;
  show(dark);

  const table = document.getElementById("arms");
  if (!table) return;
  const body = table.tBodies[0];
  const all = [...body.rows];
  const rows = all.filter((row) => !row.classList.contains("group"));
  const heads = all.filter((row) => row.classList.contains("group"));
  const find = document.getElementById("find");
  const count = document.getElementById("count");
  const buttons = [...document.querySelectorAll("#groups button")];
  document.querySelectorAll(".scripted").forEach((part) => { part.hidden = false; });
  let sorted = false;

  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    const off = new Set(buttons.filter((b) => b.ariaPressed === "false").map((b) => b.dataset.group));
    for (const row of rows) {
      row.hidden = off.has(row.dataset.group) || !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
    const shown = rows.filter((row) => !row.hidden);
    for (const head of heads) {
      head.hidden = sorted || !shown.some((row) => row.dataset.group === head.dataset.group);
    }
    count.textContent = `${shown.length} of ${rows.length} methods`;
  };
  find.addEventListener("input", filter);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      filter();
    });
  }

  // a head sorts its better end first, then the other end, then puts the rows back
  const key = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? (a < b ? -1 : a > b ? 1 : 0) : a - b);
  for (const button of table.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const first = button.dataset.first === "high" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const next = { [first]: other, [other]: null }[head.ariaSort];
      const order = next === undefined ? first : next;
      table.querySelectorAll("[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      sorted = order !== null;
      if (!sorted) {
        body.append(...all);
        return filter();
      }
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const column = Number(button.dataset.column);
      const known = rows.filter((row) => key(row, column) !== undefined);
      const rest = rows.filter((row) => key(row, column) === undefined);
      known.sort((a, b) => sign * compare(key(a, column), key(b, column)));
      body.append(...heads, ...known, ...rest);
      filter();
    });
  }
  filter();
})();
