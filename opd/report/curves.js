// Draws the figures of the page with uPlot; one cursor walks over all of them, dragging zooms, a double click undoes it.
(() => {
  "use strict";
  const DATA = JSON.parse(document.getElementById("data").textContent).figures;
  const TONES = { method: "--student", run: "--student", second: "--teacher", raw: "--raw", baseline: "--pencil", teacher: "--teacher" };
  const DASHES = [[6, 4], [2, 3], [9, 3, 2, 3], [1, 2]];
  const drawn = []; // {plot, box, draw}: everything that is on the page now

  /** The colour behind a custom property, light or dark as the page is now. */
  function tone(name) {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  }

  const number = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(3)));
  const share = (value) => `${+(100 * value).toFixed(1)}%`;

  /** The columns and series that uPlot wants: x, one per line, two more for every interval. */
  function columns(figure, format) {
    const data = [figure.x], series = [{}], bands = [];
    let dashes = 0;
    const few = figure.x.length < 30;
    for (const line of [...figure.lines].sort((a, b) => order(a) - order(b))) {
      const dash = line.role === "baseline" ? DASHES[dashes++ % DASHES.length] : line.role === "teacher" ? [3, 3] : line.dash;
      if (line.low) {
        data.push(line.high, line.low);
        series.push({ scale: "y", stroke: "transparent", points: { show: false }, spanGaps: true, of: null });
        series.push({ scale: "y", stroke: "transparent", points: { show: false }, spanGaps: true, of: null });
        bands.push({ series: [series.length - 2, series.length - 1], fill: tone("--band") });
      }
      data.push(line.y);
      const colour = tone(line.tone ?? TONES[line.role]);
      const dotted = few && line.role !== "teacher" && line.role !== "raw";
      series.push({
        scale: "y", stroke: colour, width: line.role === "raw" ? 1 : 2, dash, spanGaps: true, of: line, format,
        points: { show: dotted, size: 6, fill: colour, width: 0 },
      });
    }
    return { data, series, bands };
  }

  const order = (line) => ["raw", "teacher", "baseline", "second", "method", "run"].indexOf(line.role);

  /** What stands above a figure: every line with its value at the cursor, else at its end. */
  function legend(keys, plot, at, unit = "step") {
    const texts = [];
    if (at !== null) texts.push(Object.assign(document.createElement("span"), { textContent: `${unit} ${number(plot.data[0][at])}` }));
    [...plot.series].reverse().forEach((one, back) => {
      if (!one.of || one.of.role === "raw") return;
      const y = plot.data[plot.series.length - 1 - back];
      const value = at === null ? y.findLast((each) => each !== null) : y[at];
      const key = document.createElement("span");
      key.className = "key";
      key.style.setProperty("--tone", `var(${one.of.tone ?? TONES[one.of.role]})`);
      if (one.dash) key.style.setProperty("--dash", one.dash[0] > 3 ? "dashed" : "dotted");
      key.append(one.of.label, " ", Object.assign(document.createElement("b"), { textContent: value == null ? "–" : one.format(value) }));
      texts.push(key);
    });
    keys.replaceChildren(...texts);
  }

  /** The y axis: whatever is never negative starts at 0, so that small changes look small. */
  function range(figure) {
    return (plot, low, high) => {
      if (low === null) return [0, 1];
      if (figure.unit === "share") return [0, Math.min(1, Math.max(high * 1.1, 0.05))];
      const air = (high - low || Math.abs(high) || 1) * 0.08;
      return low >= 0 ? [0, high * 1.06 || 1] : [low - air, high + air];
    };
  }

  function options(figure, keys, width) {
    const format = figure.unit === "share" ? share : number;
    const { data, series, bands } = columns(figure, format);
    const axis = { stroke: tone("--quiet"), font: `11px ${getComputedStyle(document.body).fontFamily}`, ticks: { show: false } };
    const grid = { stroke: tone("--rule"), width: 1 };
    const show = (plot) => legend(keys, plot, plot.cursor.idx ?? null, figure.along);
    return [{
      width, height: 190, legend: { show: false }, padding: [8, 16, 0, 0], bands, series,
      scales: { x: { time: false }, y: { range: range(figure) } },
      cursor: { sync: { key: "steps", scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 7 } },
      axes: [
        { ...axis, grid: { show: false }, size: 26, space: 60, border: { show: true, stroke: grid.stroke, width: 1 } },
        { ...axis, scale: "y", grid, size: 46, space: 36, gap: 6, values: (plot, ticks) => ticks.map(figure.unit === "share" ? share : (tick) => (tick && Math.abs(tick) < 1e-3 ? (+tick.toPrecision(3)).toExponential() : String(+tick.toPrecision(6)))) },
      ],
      hooks: { setCursor: [show], ready: [show] },
    }, data];
  }

  function figures(host) {
    const list = DATA[host.dataset.figures];
    host.querySelectorAll("figure").forEach((box, at) => {
      const place = box.querySelector(".plot"), keys = box.querySelector(".keys");
      const one = { plot: null, draw: () => {
        one.plot?.destroy();
        one.plot = place.clientWidth ? new uPlot(...options(list[at], keys, place.clientWidth), place) : null;
      } };
      one.draw();
      drawn.push(one);
      new ResizeObserver(() => {
        if (one.plot && place.clientWidth && one.plot.width !== place.clientWidth) one.plot.setSize({ width: place.clientWidth, height: 190 });
        else if (!one.plot) one.draw();
      }).observe(place);
    });
  }

  const again = () => drawn.forEach((one) => one.draw());
  document.querySelectorAll("[data-figures]").forEach(figures);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { document.documentElement.style.colorScheme = "light"; again(); });
  addEventListener("afterprint", () => { document.documentElement.style.colorScheme = ""; again(); });
})();
