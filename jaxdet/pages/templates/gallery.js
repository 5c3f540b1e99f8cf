"use strict";
(() => {
  const { letters, images } = JSON.parse(document.getElementById("overlays").textContent);
  const byId = new Map(images.map((image) => [String(image.id), image]));
  const element = (id) => document.getElementById(id);
  const list = element("pictures"), viewer = element("viewer"), tools = element("tools");
  const home = document.createComment("tools"); // where the switches are while no image is large
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(`--${name}`).trim();
  const colours = Object.fromEntries(["right", "wrong", "missed", "proposal"].map((name) => [name, colour(name)]));
  const figures = [...list.querySelectorAll("figure")];
  const visible = new Set();

  const settings = () => ({
    truth: element("show-truth").checked,
    proposals: element("show-proposals").checked,
    detections: element("show-detections").checked,
    score: Number(element("score").value),
  });
  const short = (score) => score.toFixed(2).replace(/^0/, "");
  const state = (detection) =>
    detection.kind === "correct" ? "right" : detection.kind === "ignored" ? "ignored" : "wrong";

  // Detections are matched best score first, so what a threshold leaves is matched as before.
  function count(image, run, { score }) {
    const shown = image.runs[run].detections.filter((detection) => detection.score >= score);
    return {
      right: shown.filter((detection) => state(detection) === "right").length,
      wrong: shown.filter((detection) => state(detection) === "wrong").length,
      missed: missed(image, run, score).length,
    };
  }
  const missed = (image, run, score) =>
    image.truth.filter((box, i) => !box.crowd && !(image.runs[run].found[i] >= Math.max(score, 1e-9)));
  const words = ({ right, wrong, missed }) => `${right} right, ${wrong} wrong, ${missed} missed`;

  function draw(canvas, image, run, large) {
    const { clientWidth, clientHeight } = canvas, ratio = window.devicePixelRatio || 1;
    if (!clientWidth) return;
    large = large && clientWidth > 560; // on a phone words would hide the image
    canvas.width = Math.round(clientWidth * ratio);
    canvas.height = Math.round(clientHeight * ratio);
    const context = canvas.getContext("2d"), now = settings();
    context.scale(ratio, ratio);
    const scale = [clientWidth / image.width, clientHeight / image.height];
    const font = large ? 13 : 11;
    context.font = `600 ${font}px system-ui, sans-serif`;
    context.textBaseline = "top";

    function box([x, y, width, height], stroke, line, dash, tag, rim = 0.55) {
      const [left, top, w, h] = [x * scale[0], y * scale[1], width * scale[0], height * scale[1]];
      context.setLineDash([]); // a dark line beneath shows the bright one on a bright image
      context.lineWidth = line + 1.5;
      context.strokeStyle = `rgb(0 0 0 / ${100 * rim}%)`;
      context.strokeRect(left, top, w, h);
      context.setLineDash(dash);
      context.lineWidth = line;
      context.strokeStyle = stroke;
      context.strokeRect(left, top, w, h);
      if (!tag) return;
      const wide = context.measureText(tag).width + 6, tall = font + 4;
      const tx = Math.max(0, Math.min(left - line / 2, clientWidth - wide));
      const ty = top >= tall ? top - tall : Math.min(Math.max(top, 0), clientHeight - tall);
      context.fillStyle = stroke;
      context.fillRect(tx, ty, wide, tall);
      context.fillStyle = "#111";
      context.fillText(tag, tx + 3, ty + 2.5);
    }

    if (now.proposals)
      for (const [x, y, w, h, score] of image.runs[run].proposals.slice().reverse())
        if (score >= now.score) box([x, y, w, h], colours.proposal, 1, []);
    if (now.truth) {
      const lost = new Set(now.detections ? missed(image, run, now.score) : []);
      for (const truth of image.truth) {
        if (lost.has(truth)) box(truth.box, colours.missed, 2, [2, 3], large ? `? ${truth.name || "missed"}` : "?", 0.3);
        else box(truth.box, "#fff", 1, [5, 4], truth.crowd ? "crowd" : large && !now.detections ? truth.name : "", 0.25);
      }
    }
    if (now.detections) {
      const name = (detection) => (detection.name ? `${detection.name} ` : "");
      for (const detection of image.runs[run].detections.slice().reverse()) {
        if (detection.score < now.score) continue;
        const kind = state(detection), text = `${name(detection)}${short(detection.score)}`;
        if (kind === "right") box(detection.box, colours.right, 2, [], large ? text : "");
        else if (kind === "wrong") box(detection.box, colours.wrong, 2, [8, 4], large ? `× ${detection.kind} ${text}` : "×");
        else box(detection.box, "#bbb", 1, [1, 2], large ? `in a crowd ${text}` : "");
      }
    }
  }

  function drawFigure(figure) {
    const image = byId.get(figure.dataset.id);
    figure.querySelectorAll("canvas").forEach((canvas, run) => draw(canvas, image, run, false));
  }

  function update() {
    const now = settings(), totals = letters.map(() => ({ right: 0, wrong: 0, missed: 0 }));
    element("score-value").textContent = now.score.toFixed(2);
    for (const figure of figures) {
      const image = byId.get(figure.dataset.id);
      figure.querySelectorAll(".count").forEach((label, run) => {
        const counted = count(image, run, now);
        for (const key in counted) totals[run][key] += counted[key];
        label.textContent = `${letters[run]} ✓${counted.right} ×${counted.wrong} ?${counted.missed}`;
        label.title = words(counted);
      });
    }
    element("tally").textContent = totals
      .map((total, run) => (letters[run] ? `${letters[run]}: ` : "") + words(total)).join(" · ");
    visible.forEach(drawFigure);
    if (viewer.open) show(viewer.dataset.id);
  }

  function sort() {
    const by = element("order").value, now = settings();
    const weight = (figure) => (by === "chosen" ? 0 : count(byId.get(figure.dataset.id), 0, now)[by]);
    const rank = new Map(figures.map((figure) => [figure, weight(figure)]));
    list.append(...[...figures].sort((a, b) => rank.get(b) - rank.get(a)));
  }

  // ---- one image, large ----
  function show(id) {
    const image = byId.get(id), figure = figures.find((other) => other.dataset.id === id), now = settings();
    if (viewer.dataset.id !== id || !viewer.querySelector(".stage")) {
      viewer.dataset.id = id;
      element("viewer-title").textContent = `Image ${id}`;
      viewer.querySelector(".stages").replaceChildren(
        ...[...figure.querySelectorAll(".stage")].map((stage) => stage.cloneNode(true)));
      viewer.style.setProperty("--aspect", image.width / image.height);
    }
    viewer.querySelectorAll("canvas").forEach((canvas, run) => draw(canvas, image, run, true));
    viewer.querySelector(".list").replaceChildren(...letters.map((letter, run) => {
      const line = document.createElement("p");
      const shown = image.runs[run].detections.filter((detection) => detection.score >= now.score);
      line.textContent = (letter ? `${letter}: ` : "") + words(count(image, run, now)) + (shown.length ? ": " : "") +
        shown.map((detection) => `${short(detection.score)} ${detection.name || ""} ${detection.kind}`.replace("  ", " ")).join(", ");
      return line;
    }));
  }

  function open(id) {
    tools.before(home);
    viewer.querySelector(".bar-top").after(tools);
    viewer.showModal();
    show(id);
  }

  function step(by) {
    const shown = [...list.children], at = shown.findIndex((figure) => figure.dataset.id === viewer.dataset.id);
    show(shown[(at + by + shown.length) % shown.length].dataset.id);
  }

  viewer.addEventListener("close", () => {
    home.replaceWith(tools);
    list.querySelector(`figure[data-id="${viewer.dataset.id}"] button`).focus();
  });
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=range], select")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  element("before").addEventListener("click", () => step(-1));
  element("after").addEventListener("click", () => step(1));
  element("close").addEventListener("click", () => viewer.close());
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) open(button.parentElement.dataset.id);
  });
  tools.addEventListener("input", update);
  element("order").addEventListener("change", sort);

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { visible.add(entry.target); drawFigure(entry.target); }
      else visible.delete(entry.target);
    }
  }, { rootMargin: "300px" });
  figures.forEach((figure) => watcher.observe(figure));
  new ResizeObserver(() => { visible.forEach(drawFigure); if (viewer.open) show(viewer.dataset.id); }).observe(list);
  window.addEventListener("resize", () => viewer.open && show(viewer.dataset.id));
  update();
})();
