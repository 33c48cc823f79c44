"use strict";
// What the page does beyond showing: colours, axes, hovering, sorting, filtering. Without it everything is still there.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const made = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  function colours() {
    if (!CSS.supports("color", "light-dark(red, red)")) return;
    const button = document.getElementById("mode"), root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => (root.dataset.mode ? root.dataset.mode === "dark" : system.matches);
    const named = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
    button.addEventListener("click", () => { root.dataset.mode = isDark() ? "light" : "dark"; named(); });
    system.addEventListener("change", named);
    named();
    button.hidden = false;
  }

  function contents() {
    const list = document.querySelector("nav details"), wide = matchMedia("(min-width: 70rem)");
    const fit = () => { list.open = wide.matches; };
    wide.addEventListener("change", fit);
    fit();
    const unfold = () => {
      const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
      if (target instanceof HTMLDetailsElement) target.open = true;
    };
    addEventListener("hashchange", unfold);
    unfold();
    const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) {
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id).setAttribute("aria-current", "true");
      }
    }, { rootMargin: "0px 0px -75% 0px" });
    for (const name of links.keys()) seen.observe(document.getElementById(name));
  }

  // Printed, everything is unfolded; afterwards it is as it was.
  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = all("main details:not([open])");
      for (const each of opened) each.open = true;
    });
    addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
  }

  // The axes of a chart, or of several small ones; one that does not have such axes keeps its own.
  function scales(choice) {
    choice.hidden = false;
    choice.addEventListener("click", (event) => {
      const scale = event.target.dataset.scale;
      if (!scale) return;
      for (const each of all("button", choice)) each.setAttribute("aria-pressed", String(each.dataset.scale === scale));
      const axes = choice.closest(".axes");
      for (const chart of axes.matches(".chart") ? [axes] : all(".chart", axes)) {
        const plots = all(".plot", chart), has = plots.some((plot) => plot.dataset.scale === scale);
        if (has) for (const plot of plots) plot.hidden = plot.dataset.scale !== scale;
      }
    });
  }

  // A chart is one stop of the Tab key; in it the arrow keys go from point to point.
  function points(chart, tip) {
    const texts = new WeakMap();
    let current = null;
    const textOf = (point) => {
      const title = point.querySelector("title");
      if (title) { texts.set(point, title.textContent); title.remove(); } // or it would be shown twice
      return texts.get(point);
    };
    const hide = () => {
      current?.classList.remove("current");
      current = null;
      tip.hidden = true;
    };
    const show = (point) => {
      hide();
      current = point;
      point.classList.add("current");
      tip.textContent = textOf(point);
      tip.hidden = false;
      const at = point.getBoundingClientRect(), size = tip.getBoundingClientRect();
      const width = document.documentElement.clientWidth;
      const left = Math.max(8, Math.min(at.left + at.width / 2 - size.width / 2, width - size.width - 8));
      const above = at.top - size.height - 8;
      tip.style.left = `${left + scrollX}px`;
      tip.style.top = `${(above < 4 ? at.bottom + 8 : above) + scrollY}px`;
    };
    const POINTS = ".point, .mark";
    for (const drawing of all(".plot > svg", chart)) {
      const list = all(POINTS, drawing);
      if (!list.length) continue;
      drawing.setAttribute("tabindex", "0");
      drawing.setAttribute("aria-roledescription", "chart; the arrow keys go from point to point");
      drawing.addEventListener("pointerover", (event) => {
        const point = event.target.closest(POINTS);
        if (point) show(point); else hide();
      });
      drawing.addEventListener("pointerleave", hide);
      drawing.addEventListener("blur", hide);
      drawing.addEventListener("keydown", (event) => {
        const at = list.indexOf(current), last = list.length - 1;
        const next = {
          ArrowRight: Math.min(at + 1, last), ArrowDown: Math.min(at + 1, last), Home: 0, End: last,
          ArrowLeft: Math.max(at - 1, 0), ArrowUp: Math.max(at - 1, 0), Escape: -1,
        }[event.key];
        if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        if (next < 0) hide(); else show(list[next]);
      });
    }
  }

  const MISSING = new Set(["", "–", "-"]);
  const collator = new Intl.Collator(document.documentElement.lang, { numeric: true, sensitivity: "base" });
  const NUMBER = /^[+\-−]?(\d[\d,]*\.?\d*|\.\d+)(e[+\-]?\d+)?$/i;

  // A number, a text, or null for what is missing.
  function keyOf(cell) {
    if (cell.dataset.v !== undefined) return Number.isNaN(Number(cell.dataset.v)) ? special(cell.dataset.v) : Number(cell.dataset.v);
    const small = cell.querySelector("small");
    const text = (small ? cell.textContent.slice(0, -small.textContent.length) : cell.textContent).trim();
    if (MISSING.has(text)) return null;
    return NUMBER.test(text) ? Number(text.replaceAll(",", "").replace("−", "-")) : text;
  }

  function special(text) {
    return { inf: Infinity, "-inf": -Infinity }[text] ?? null;
  }

  // Numbers before texts, in either order what is missing last.
  function compared(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    const isText = [typeof a === "string", typeof b === "string"];
    if (isText[0] !== isText[1]) return isText[0] - isText[1];
    return sign * (isText[0] ? collator.compare(a, b) : a === b ? 0 : a < b ? -1 : 1);
  }

  function sorting(table, told) {
    const heads = all("thead th", table), body = table.tBodies[0];
    const original = [...body.rows];
    if (original.length < 2) return;
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = made("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const isNumbers = original.some((row) => typeof keyOf(row.cells[column]) === "number");
        const first = isNumbers && column > 0 ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = before === null ? first : before === first ? second : null; // then as it was
        for (const each of heads) each.removeAttribute("aria-sort");
        if (order) head.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const keyed = original.map((row) => [keyOf(row.cells[column]), row]);
        if (order) keyed.sort((a, b) => compared(a[0], b[0], sign)); // stable
        body.append(...keyed.map(([, row]) => row));
        told.textContent = order ? `Sorted by ${head.textContent}, ${order}.` : "In its first order.";
      });
    });
  }

  function filter(table, told) {
    const region = table.closest(".scroll"), rows = [...table.tBodies[0].rows];
    const input = made("input", { type: "search" });
    input.addEventListener("input", () => {
      const wanted = input.value.toLocaleLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLocaleLowerCase().includes(wanted);
      told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows.`;
    });
    region.before(made("label", { className: "filter" }, "Only rows with", input));
  }

  const tip = document.getElementById("tip");
  const told = made("div", { className: "unseen" });
  told.setAttribute("role", "status");
  document.body.append(told);
  colours();
  contents();
  printing();
  for (const choice of all(".choice")) scales(choice);
  for (const chart of all(".chart")) points(chart, tip);
  for (const table of all("table")) { sorting(table, told); if ("filter" in table.dataset) filter(table, told); }
})();
