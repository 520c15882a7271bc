"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tables: search, filters and sorting.
  const tables = all("[data-table]").map((box) => {
    const body = box.querySelector("tbody");
    const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
    const search = box.querySelector("input[type=search]");
    const filters = all("select[data-column]", box);
    const output = box.querySelector("output");
    const empty = box.querySelector(".empty");

    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = filters.filter((f) => f.value).map((f) => [Number(f.dataset.column), f.value]);
      let shown = 0;
      for (const { row, text } of rows) {
        const keep =
          words.every((word) => text.includes(word)) &&
          chosen.every(([column, value]) => row.cells[column].textContent === value);
        row.hidden = !keep;
        shown += keep;
      }
      output.textContent = `${shown} of ${rows.length}`;
      empty.hidden = shown > 0;
    };
    const clear = () => {
      search.value = "";
      for (const f of filters) f.value = "";
      filter();
    };

    const key = (row, column) => {
      const cell = row.cells[column];
      if ("v" in cell.dataset) return Number(cell.dataset.v);
      const text = cell.textContent;
      return text === "" || text === "–" ? null : text;
    };
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
      return String(a).localeCompare(String(b), "en", { numeric: true });
    };
    all("thead th", box).forEach((th, column) => {
      th.querySelector("button").addEventListener("click", () => {
        const up = th.getAttribute("aria-sort") !== "ascending";
        for (const other of all("thead th", box)) other.removeAttribute("aria-sort");
        th.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = rows.map(({ row }) => [key(row, column), row]);
        // What is absent stays last in both directions.
        keyed.sort(([a], [b]) => (a === null || b === null || up ? compare(a, b) : compare(b, a)));
        body.append(...keyed.map(([, row]) => row));
      });
    });
    search.addEventListener("input", filter);
    for (const f of filters) f.addEventListener("change", filter);
    box.querySelector(".clear").addEventListener("click", clear);
    filter();
    return { box, clear };
  });

  // A link to a case shows its row even where a filter hides it.
  const reveal = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const row = id && document.getElementById(id);
    if (!row || row.tagName !== "TR") return;
    const table = tables.find(({ box }) => box.contains(row));
    if (row.hidden && table) table.clear();
    row.scrollIntoView({ block: "center", inline: "nearest" });
    row.focus({ preventScroll: true });
  };
  addEventListener("hashchange", reveal);
  // Following the same link twice changes no hash.
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a");
    if (link && link.getAttribute("href") === location.hash) reveal();
  });

  // The answer: one point at a time, and what fits a budget.
  const form = document.querySelector(".picker");
  if (form) {
    const points = all(".point");
    const verdict = document.querySelector(".verdict");
    const { setting, t, b, budget, unit } = form.elements;
    const fill = (select, values, wanted) => {
      const options = [...new Set(values)];
      select.replaceChildren(...options.map((value) => new Option(value, value)));
      select.value = options.includes(wanted) ? wanted : options[options.length - 1];
      select.disabled = options.length < 2;
    };
    const values = (name, list) => list.map((point) => point.dataset[name]);
    const byNumber = (list) => list.sort((x, y) => x - y);
    const fits = (point) => {
      const limit = budget.value === "" ? Infinity : Number(budget.value) * Number(unit.value);
      let best = null;
      let least = null;
      for (const row of all("tbody tr", point)) {
        const peak = "peak" in row.dataset ? Number(row.dataset.peak) : NaN;
        const cost = "cost" in row.dataset ? Number(row.dataset.cost) : Infinity;
        row.classList.remove("best", "fits");
        row.classList.toggle("over", peak > limit);
        least ??= "peak" in row.dataset ? row : null;
        if (peak <= limit && (!best || cost < best.cost)) best = { row, cost };
      }
      verdict.hidden = limit === Infinity;
      if (limit === Infinity) return;
      const size = `${budget.value} ${unit.selectedOptions[0].text}`;
      if (best) {
        best.row.classList.add(best.cost < Infinity ? "best" : "fits");
        const cost = best.cost < Infinity
          ? `the cheapest here that fits and whose gradient ${point.dataset.gradient}, at ${best.cost.toPrecision(3)} × ${point.dataset.reference} in ${point.dataset.cost}.`
          : `it fits and its gradient ${point.dataset.gradient}; its cost against ${point.dataset.reference} is not decided.`;
        verdict.textContent = `Within ${size}: ${best.row.cells[0].textContent}, ${cost}`;
      } else if (least) {
        const [name, , peak] = [...least.cells].map((cell) => cell.textContent);
        verdict.textContent = `No node whose gradient ${point.dataset.gradient} fits in ${size} here; ${name} takes least, ${peak}.`;
      } else {
        verdict.textContent = "No node is ranked here, so none can be named.";
      }
    };
    const show = () => {
      const here = points.filter((point) => point.dataset.setting === setting.value);
      fill(t, byNumber(values("t", here)), t.value);
      const then = here.filter((point) => point.dataset.t === t.value);
      fill(b, byNumber(values("b", then)), b.value);
      for (const point of points) point.hidden = !(then.includes(point) && point.dataset.b === b.value);
      fits(points.find((point) => !point.hidden));
    };
    const first = points[Number(form.dataset.first)].dataset;
    fill(setting, values("setting", points), first.setting);
    fill(t, [first.t], first.t);
    fill(b, [first.b], first.b);
    show();
    // A link to a point chooses it.
    const chosen = () => {
      const point = points.find(({ id }) => `#${id}` === location.hash);
      if (!point) return;
      setting.value = point.dataset.setting;
      fill(t, [point.dataset.t], point.dataset.t);
      fill(b, [point.dataset.b], point.dataset.b);
      show();
      point.scrollIntoView({ block: "nearest" });
    };
    addEventListener("hashchange", chosen);
    chosen();
    for (const control of [setting, t, b, unit]) control.addEventListener("change", show);
    budget.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  // After the browser has scrolled to the address by itself.
  addEventListener("load", reveal);
})();
