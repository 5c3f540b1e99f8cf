"""The page of the service: one HTML document that asks for nothing else."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>jaxdet</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
         color: #222; background: #fff }
  label.drop { display: block; border: 2px dashed #777; border-radius: .5rem; padding: 2rem 1rem;
               text-align: center; cursor: pointer }
  label.drop.over, label.drop:focus-within { border-color: #0072b2; background: #eef6fb }
  input[type=file] { position: absolute; opacity: 0; width: 1px }
  img { max-width: 100%; height: auto; margin-top: 1rem }
  pre { overflow: auto; background: #f3f3f3; padding: .5rem; max-height: 20rem }
</style>
<h1>jaxdet</h1>
<label class="drop" id="drop">Drop an image here, or choose one<input type="file" id="file" accept="image/*"></label>
<p><label>Lowest score <input type="range" id="threshold" min="0.05" max="0.95" step="0.05" value="0.5">
<output id="shown">0.5</output></label></p>
<p id="status" role="status"></p>
<img id="drawn" alt="" hidden>
<pre id="json" hidden></pre>
<script>
  const at = id => document.getElementById(id);
  let image = null, latest = 0;
  async function detect() {
    if (!image) return;
    const mine = ++latest;
    at("status").textContent = "Looking ...";
    const ask = answer => fetch(`detect?answer=${answer}&threshold=${at("threshold").value}`, {
      method: "POST", headers: {"Content-Type": "application/octet-stream"}, body: image});
    try {
      const found = await ask("json"), said = await found.json();
      if (mine !== latest) return;
      if (!found.ok) throw new Error(said.message);
      at("json").textContent = JSON.stringify(said, null, 1);
      at("json").hidden = false;
      const drawn = await ask("jpeg");
      if (mine !== latest) return;
      if (!drawn.ok) throw new Error((await drawn.json()).message);
      URL.revokeObjectURL(at("drawn").src);
      at("drawn").src = URL.createObjectURL(await drawn.blob());
      at("drawn").alt = at("status").textContent = `${said.detections.length} found`;
      at("drawn").hidden = false;
    } catch (error) {
      if (mine !== latest) return;
      at("status").textContent = `Not done: ${error.message}`;
      at("drawn").hidden = at("json").hidden = true;
    }
  }
  const take = files => { if (files.length) { image = files[0]; detect(); } };
  at("file").addEventListener("change", event => take(event.target.files));
  at("threshold").addEventListener("input", event => at("shown").textContent = event.target.value);
  at("threshold").addEventListener("change", detect);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    at("drop").addEventListener(kind, event => {
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
</script>
</html>
"""
