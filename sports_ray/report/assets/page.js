"use strict";
// All text reaches the page as textContent: names of classes are those of strangers.
(function () {
  const SVG = "http://www.w3.org/2000/svg";

  function sorted(list, key) {
    const down = key.startsWith("-"), name = down ? key.slice(1) : key;
    const items = Array.from(list.children);
    items.sort(function (a, b) {
      const x = a.dataset[name], y = b.dataset[name];
      const order = name === "name" ? x.localeCompare(y) : Number(x) - Number(y);
      return (down ? -order : order) || a.dataset.name.localeCompare(b.dataset.name);
    });
    list.append(...items);
  }

  for (const select of document.querySelectorAll("select[data-sort]")) {
    const list = document.getElementById(select.dataset.sort);
    select.addEventListener("change", function () { sorted(list, select.value); });
  }

  function make(tag, parent, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const name in attributes) node.setAttribute(name, attributes[name]);
    parent.append(node);
    return node;
  }

  // A matrix of counts that fits the screen at first; zoomed, its labels keep their size and move along.
  function matrix(box) {
    const data = JSON.parse(document.getElementById(box.dataset.source).textContent);
    const names = data.names, size = names.length, svg = box.querySelector("svg"), readout = box.querySelector(".readout");
    const totals = new Array(size).fill(0), hits = new Array(size).fill(0), counts = new Map();
    for (const [row, column, count] of data.cells) {
      totals[row] += count;
      if (row === column) hits[row] = count;
      counts.set(row * size + column, count);
    }
    const longest = Math.max.apply(null, names.map(function (name) { return name.length; }));
    const recall = function (i) { return totals[i] ? hits[i] / totals[i] : 2; };
    const orders = {
      clustered: data.order,
      name: Array.from(names.keys()).sort(function (a, b) { return names[a].localeCompare(names[b]); }),
      recall: Array.from(names.keys()).sort(function (a, b) { return recall(a) - recall(b) || a - b; }),
    };
    let order = orders.clustered, seen = size, left = 0, top = 0, width = 0, margin = 0, side = 0, lit = null;

    svg.replaceChildren();
    const clip = make("clipPath", make("defs", svg, {}), { id: "cells-clip" });
    const clipBox = make("rect", clip, {});
    const ground = make("rect", svg, { class: "ground" });
    const cells = make("g", make("g", svg, { "clip-path": "url(#cells-clip)" }), {});
    const paths = make("g", cells, {}), cross = make("path", cells, { class: "cross" });
    const labels = make("g", svg, { class: "labels" });

    function paint() {
      const place = new Array(size), parts = {};
      order.forEach(function (index, at) { place[index] = at; });
      for (const [row, column, count] of data.cells) {
        const level = Math.min(8, 1 + Math.floor(8 * Math.sqrt(count / totals[row])));
        const kind = (row === column ? "h" : "e") + level;
        (parts[kind] = parts[kind] || []).push("M" + place[column] + " " + place[row] + "h1v1h-1z");
      }
      paths.replaceChildren();
      for (const kind in parts) make("path", paths, { class: kind, d: parts[kind].join("") });
    }

    function short(name, most) { return name.length > most ? name.slice(0, most - 1) + "…" : name; }

    function show() {
      const letter = size > 60 ? 5.4 : 7.2;
      svg.style.maxWidth = Math.round(Math.min(1080, 160 + 56 * size)) + "px";
      width = svg.clientWidth || 1000;
      margin = Math.round(Math.max(48, Math.min(150, width * 0.24, longest * letter + 12)));
      const field = width - margin - 2;
      side = field / seen;
      left = Math.max(0, Math.min(size - seen, left));
      top = Math.max(0, Math.min(size - seen, top));
      svg.setAttribute("viewBox", "0 0 " + width + " " + width);
      for (const rect of [clipBox, ground]) {
        for (const name of ["x", "y"]) rect.setAttribute(name, margin);
        for (const name of ["width", "height"]) rect.setAttribute(name, field);
      }
      cells.setAttribute("transform", "translate(" + (margin - left * side) + " " + (margin - top * side) + ") scale(" + side + ")");
      cross.setAttribute("d", lit ? "M0 " + lit[0] + "h" + size + "v1H0zM" + lit[1] + " 0v" + size + "h1V0z" : "");
      svg.style.touchAction = seen < size ? "none" : "pan-y";
      label(field);
    }

    function label(field) {
      const font = Math.max(8, Math.min(13, side * 0.92)), step = Math.ceil((font * 0.98) / side);
      const most = Math.floor((margin - 6) / (font * 0.6));
      labels.replaceChildren();
      labels.setAttribute("font-size", font);
      for (let at = 0; at < size; at++) {
        for (const isRow of [true, false]) {
          const from = isRow ? top : left, middle = margin + (at + 0.5 - from) * side;
          if (middle < margin || middle > margin + field) continue;
          const isLit = lit && lit[isRow ? 0 : 1] === at;
          const near = lit && !isLit && Math.abs(lit[isRow ? 0 : 1] - at) < step;
          if (!isLit && (at % step || near)) continue;
          const y = middle + font * 0.34;
          const text = make("text", labels, isRow
            ? { x: margin - 4, y: y, "text-anchor": "end" }
            : { transform: "translate(" + y + " " + (margin - 4) + ") rotate(-90)" });
          if (isLit) text.setAttribute("class", "lit");
          text.textContent = short(names[order[at]], most);
        }
      }
    }

    function point(event) {
      const rect = svg.getBoundingClientRect();
      const x = (event.clientX - rect.left - margin) / side + left, y = (event.clientY - rect.top - margin) / side + top;
      const inside = event.clientX - rect.left >= margin && event.clientY - rect.top >= margin;
      const row = Math.floor(y), column = Math.floor(x);
      return inside && row >= 0 && column >= 0 && row < size && column < size ? { x, y, row, column } : null;
    }

    function tell(at) {
      lit = at ? [at.row, at.column] : null;
      if (at) {
        const row = order[at.row], column = order[at.column], count = counts.get(row * size + column) || 0;
        const share = totals[row] ? (100 * count / totals[row]).toFixed(1) + " %" : "–";
        const verb = row === column ? "recognised" : "taken for " + names[column];
        readout.textContent = names[row] + " " + verb + ": " + count + " of " + totals[row] + " (" + share + ")";
      }
      show();
    }

    function zoom(factor, x, y) {
      const next = Math.max(Math.min(8, size), Math.min(size, seen / factor));
      left = x - (x - left) * next / seen;
      top = y - (y - top) * next / seen;
      seen = next;
      show();
    }

    const fingers = new Map();
    let moved = false;
    svg.addEventListener("pointerdown", function (event) {
      fingers.set(event.pointerId, event);
      moved = false;
      if (seen < size) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", function (event) {
      const before = fingers.get(event.pointerId);
      if (!before) {
        if (event.pointerType === "mouse") tell(point(event));
        return;
      }
      const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
      if (fingers.size === 2) {
        const other = Array.from(fingers.values()).find(function (one) { return one.pointerId !== event.pointerId; });
        const far = function (one) { return Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1; };
        const at = point(event);
        if (at) zoom(far(event) / far(before), at.x, at.y);
        moved = true;
      } else if (seen < size && (moved || Math.hypot(dx, dy) > 3)) {
        left -= dx / side;
        top -= dy / side;
        moved = true;
        show();
      } else {
        return;
      }
      fingers.set(event.pointerId, event);
    });
    svg.addEventListener("pointerup", function (event) {
      fingers.delete(event.pointerId);
      if (!moved) tell(point(event));
    });
    for (const name of ["pointercancel", "pointerleave"]) {
      svg.addEventListener(name, function (event) { fingers.delete(event.pointerId); });
    }
    svg.addEventListener("wheel", function (event) {
      const at = point(event);
      if (!at || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), at.x, at.y);
    }, { passive: false });
    svg.addEventListener("dblclick", function (event) {
      const at = point(event);
      if (at) zoom(2, at.x, at.y);
    });
    for (const button of box.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", function () {
        const way = button.dataset.zoom, at = lit || [top + seen / 2, left + seen / 2];
        if (way === "fit") zoom(0.001, 0, 0);
        else zoom(way === "in" ? 1.6 : 1 / 1.6, at[1] + 0.5, at[0] + 0.5);
      });
    }
    box.querySelector("[data-order]").addEventListener("change", function (event) {
      order = orders[event.target.value];
      lit = null;
      paint();
      show();
    });
    paint();
    show();
    new ResizeObserver(show).observe(box);
  }

  for (const box of document.querySelectorAll("[data-source]")) matrix(box);
  document.documentElement.dataset.ready = "yes";
})();
