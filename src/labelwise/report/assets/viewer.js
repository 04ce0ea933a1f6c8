"use strict";
// Draws the cases of the page with NiiVue. Everything is inside of the page; nothing is fetched.
(() => {
  const part = (name) => document.getElementById(`viewer-${name}`);
  const root = part("root");
  if (!root) return;
  const cases = JSON.parse(part("cases").textContent);
  const DIFFERENCES = JSON.parse(part("differences").textContent);
  const VIEWS = ["Axial", "Coronal", "Sagittal", "Multiplanar", "Render"];
  const say = (text) => { part("status").textContent = text; };
  let viewer = null, library = null, current = 0, loaded = null, hidden = new Set(), turn = 0;

  const data = (name) => document.getElementById(name).textContent.trim();

  async function loadLibrary() {
    const bytes = Uint8Array.from(atob(data("niivue-code")), (sign) => sign.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const address = URL.createObjectURL(new Blob([await new Response(plain).blob()], { type: "text/javascript" }));
    await new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: address, onload: resolve, onerror: reject });
      document.head.append(script);
    });
    URL.revokeObjectURL(address);
    return window.niivue;
  }

  // A label table for NiiVue: classes that are hidden are transparent.
  function table(colours) {
    const lut = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    colours.forEach(([name, colour], number) => {
      [lut.R, lut.G, lut.B].forEach((list, n) => list.push(parseInt(colour.slice(1 + 2 * n, 3 + 2 * n), 16)));
      lut.A.push(hidden.has(name) ? 0 : 255);
      lut.I.push(number + 1);
      lut.labels.push("");
    });
    return lut;
  }

  const image = (name, id, options) => library.NVImage.loadFromBase64({ base64: data(id), name, ...options });

  // Voxels of which nothing is known are not drawn.
  function known(map) {
    const voxels = Uint8Array.from(map.img);
    for (let n = 0; n < voxels.length; n++) if (voxels[n] === 255) voxels[n] = 0;
    map.raw = map.img;
    map.img = voxels;
    return map;
  }

  function difference(reference, prediction, annotated) {
    const found = prediction.clone();
    const voxels = new Uint8Array(prediction.img.length);
    for (let n = 0; n < voxels.length; n++) {
      const truth = reference.raw[n];
      const said = annotated.has(prediction.img[n]) ? prediction.img[n] : 0;
      if (truth !== 255 && truth !== said) voxels[n] = truth === 0 ? 1 : said === 0 ? 2 : 3;
    }
    found.img = voxels;
    return found;
  }

  async function layer(name) {
    if (name === "nothing") return null;
    const shown = cases[current];
    const [kind, map] = name.split("/", 2);
    if (!loaded.maps.has(map)) loaded.maps.set(map, known(await image(`${map}.nii.gz`, shown.maps[map], {})));
    if (kind === "map") return { volume: loaded.maps.get(map), colours: shown.colours };
    if (!loaded.maps.has("0")) loaded.maps.set("0", known(await image("0.nii.gz", shown.maps["0"], {})));
    if (!loaded.differences.has(map)) {
      const annotated = new Set(shown.annotated);
      loaded.differences.set(map, difference(loaded.maps.get("0"), loaded.maps.get(map), annotated));
    }
    return { volume: loaded.differences.get(map), colours: DIFFERENCES };
  }

  async function showLayer() {
    const mine = ++turn;
    const wanted = await layer(part("layer").value);
    if (mine !== turn) return;
    while (viewer.volumes.length > 1) viewer.removeVolume(viewer.volumes[1]);
    if (wanted) {
      wanted.volume.opacity = Number(part("opacity").value) / 100;
      wanted.volume.colorbarVisible = false;
      wanted.volume.setColormapLabel(table(wanted.colours));
      viewer.addVolume(wanted.volume);
      viewer.setOpacity(1, wanted.volume.opacity);
    }
    listClasses(wanted ? wanted.colours : []);
    viewer.updateGLVolume();
    root.dataset.state = "ready";
  }

  function listClasses(colours) {
    const boxes = colours.map(([name, colour]) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(name) });
      box.addEventListener("change", () => { box.checked ? hidden.delete(name) : hidden.add(name); recolour(); });
      const patch = document.createElement("i");
      patch.style.background = colour;
      label.append(box, patch, name);
      return label;
    });
    part("classes").replaceChildren(Object.assign(document.createElement("legend"), { textContent: "Structures" }), ...boxes);
  }

  async function recolour() {
    const wanted = await layer(part("layer").value);
    if (!wanted || viewer.volumes.length < 2) return;
    viewer.volumes[1].setColormapLabel(table(wanted.colours));
    viewer.updateGLVolume();
  }

  function place() {
    const depth = viewer.volumes[0].dimsRAS[3];
    const slice = Math.min(depth - 1, Math.max(0, Math.floor(viewer.scene.crosshairPos[2] * depth)));
    Object.assign(part("slice"), { max: depth, value: slice + 1 });
    part("slice-number").textContent = `${slice + 1} of ${depth}`;
  }

  function goTo(slice) {
    const depth = viewer.volumes[0].dimsRAS[3];
    viewer.scene.crosshairPos[2] = (Math.min(depth, Math.max(1, slice)) - 0.5) / depth;
    viewer.drawScene();
    place();
  }

  async function showCase(number) {
    current = number;
    root.dataset.state = "loading";
    const shown = cases[number];
    say(`Loading ${shown.case} ...`);
    const layers = [["map/0", shown.names[0]]];
    shown.names.slice(1).forEach((name, n) => layers.push([`map/${n + 1}`, name], [`differs/${n + 1}`, `${name}: what differs`]));
    layers.push(["nothing", "scan only"]);
    const before = part("layer").value;
    part("layer").replaceChildren(...layers.map(([value, text]) => new Option(text, value)));
    part("layer").value = layers.some(([value]) => value === before) ? before : layers[shown.names.length > 1 ? 1 : 0][0];
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    const scan = await image("scan.nii.gz", shown.scan, { colormap: "gray", cal_min: 0, cal_max: 255, colorbarVisible: false });
    loaded = { maps: new Map(), differences: new Map() };
    viewer.addVolume(scan);
    viewer.setOpacity(0, Number(part("scan-opacity").value) / 100);
    await showLayer();
    viewer.scene.crosshairPos = shown.centre.slice();
    viewer.drawScene();
    place();
    part("canvas").setAttribute("aria-label", `Scan ${shown.case}. Arrow keys up and down move through the axial slices.`);
    say(`${shown.case}. ${shown.note}`);
  }

  function listen() {
    part("case").addEventListener("change", (event) => showCase(Number(event.target.value)));
    part("layer").addEventListener("change", showLayer);
    part("view").addEventListener("change", (event) => viewer.setSliceType(viewer[`sliceType${VIEWS[event.target.value]}`]));
    part("slice").addEventListener("input", (event) => goTo(Number(event.target.value)));
    part("opacity").addEventListener("input", (event) => {
      if (viewer.volumes.length > 1) viewer.setOpacity(1, Number(event.target.value) / 100);
    });
    part("scan-opacity").addEventListener("input", (event) => viewer.setOpacity(0, Number(event.target.value) / 100));
    part("canvas").addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (!step) return;
      event.preventDefault();
      goTo(Number(part("slice").value) + step);
    });
  }

  async function start() {
    try {
      say("Starting the viewer ...");
      if (!document.createElement("canvas").getContext("webgl2")) throw new Error("it needs WebGL 2, which this browser does not offer");
      library = await loadLibrary();
      viewer = new library.Niivue({
        backColor: [0, 0, 0, 1], crosshairWidth: 0.5, isRadiologicalConvention: true, sagittalNoseLeft: true,
        multiplanarShowRender: library.SHOW_RENDER ? library.SHOW_RENDER.ALWAYS : 1, dragAndDropEnabled: false,
        isOrientationTextVisible: root.dataset.oriented === "true", logLevel: "error", loadingText: "", show3Dcrosshair: false,
        scrollRequiresFocus: true, clipPlaneHotKey: "", viewModeHotKey: "", isCornerOrientationText: false, fontMinPx: 11,
      });
      viewer.onLocationChange = place;
      await viewer.attachToCanvas(part("canvas"));
      listen();
      root.hidden = false;
      await showCase(0);
    } catch (error) {
      root.dataset.state = "failed";
      say(`The viewer could not start: ${error.message || error}. The pictures above show the same cases.`);
    }
  }

  const seen = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) { seen.disconnect(); start(); }
  }, { rootMargin: "300px" });
  seen.observe(root);
})();
