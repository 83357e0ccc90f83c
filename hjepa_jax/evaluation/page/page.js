"use strict";
// Theme: the system's, or the other one.
{
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  button.hidden = false;
  button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; name(); };
  system.addEventListener("change", name);
  name();
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details:not(:has(pre))")) part.open = true;
  });
}
// Values on hover, by touch, and with the arrow keys.
for (const chart of document.querySelectorAll("svg.chart")) {
  const figure = chart.closest("figure"), percent = "percent" in chart.dataset;
  const [left, right, top, bottom] = chart.dataset.frame.split(" ").map(Number);
  const numbers = (text) => (text ? text.split(" ").map(Number) : null);
  const series = [...chart.querySelectorAll(".series")].map((group) => {
    const line = group.querySelector(".line")?.getAttribute("d");
    const dots = [...group.querySelectorAll(".dot")];
    const at = line
      ? line.slice(1).split("L").map((point) => point.split(",").map(Number))
      : dots.map((dot) => [Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))]);
    const { name, x, y, low, high } = group.dataset;
    const paint = group.classList[1];
    return { name, paint, at, x: numbers(x), y: numbers(y), low: numbers(low), high: numbers(high) };
  });
  const stops = [...new Set(series.flatMap((one) => one.at.map((point) => point[0])))];
  stops.sort((a, b) => a - b);
  if (!stops.length) continue;
  for (const title of chart.querySelectorAll("title")) title.remove();
  const short = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };
  const text = (value) => (percent ? `${(100 * value).toFixed(1)} %` : short(value));
  const draw = (tag, attributes) => {
    const made = document.createElementNS(chart.namespaceURI, tag);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return made;
  };
  const layer = draw("g", {}), tip = document.createElement("div");
  chart.append(layer);
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  figure.append(tip);
  chart.tabIndex = 0;
  let current = -1;
  const hide = () => { layer.replaceChildren(); tip.hidden = true; current = -1; };
  const show = (index) => {
    current = index;
    const stop = stops[index], rows = [];
    layer.replaceChildren(draw("line", { x1: stop, x2: stop, y1: top, y2: bottom, class: "guide" }));
    const heights = [];
    let at = null;
    for (const one of series) {
      const i = one.at.findIndex((point) => Math.abs(point[0] - stop) < 0.3);
      if (i < 0) continue;
      at = one.x[i];
      heights.push(one.at[i][1]);
      const row = document.createElement("div"), value = document.createElement("output");
      const band = one.low && Number.isFinite(one.low[i]);
      row.className = one.paint;
      value.textContent = text(one.y[i])
        + (band ? ` (${text(one.low[i])} to ${text(one.high[i])})` : "");
      row.append(one.name, value);
      rows.push(row);
      layer.append(draw("circle", { cx: one.at[i][0], cy: one.at[i][1], r: 4.5,
        class: `mark ${one.paint}` }));
    }
    const head = document.createElement("strong");
    head.textContent = `${chart.dataset.x} ${short(at)}`;
    tip.replaceChildren(head, ...rows);
    tip.hidden = false;
    const box = chart.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const unit = box.width / chart.viewBox.baseVal.width, x = box.left - outer.left + stop * unit;
    const room = outer.width - tip.offsetWidth;
    const wanted = stop > (left + right) / 2 ? x - tip.offsetWidth - 12 : x + 12;
    tip.style.left = `${Math.max(0, Math.min(room, wanted))}px`;
    // Above or below the points, whichever is emptier.
    const low = heights.reduce((sum, y) => sum + y, 0) / heights.length > (top + bottom) / 2;
    const y = low ? top * unit : bottom * unit - tip.offsetHeight - 6;
    tip.style.top = `${box.top - outer.top + y}px`;
  };
  const nearest = (x) => {
    let best = 0;
    stops.forEach((stop, i) => { if (Math.abs(stop - x) < Math.abs(stops[best] - x)) best = i; });
    return best;
  };
  const follow = (event) => {
    const box = chart.getBoundingClientRect();
    show(nearest((event.clientX - box.left) * chart.viewBox.baseVal.width / box.width));
  };
  chart.addEventListener("pointermove", follow);
  chart.addEventListener("pointerdown", follow);
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const last = stops.length - 1;
    const next = { ArrowRight: Math.min(last, current + 1), Home: 0, End: last,
      ArrowLeft: current < 0 ? last : Math.max(0, current - 1) }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined) return;
    event.preventDefault();
    show(next);
  });
}
