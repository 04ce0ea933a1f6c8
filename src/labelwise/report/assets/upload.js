"use strict";
// Sends scans to the server of this page, follows their jobs, and shows the pages of their results.
(() => {
  const part = (name) => document.getElementById(name);
  const OVER = ["done", "failed", "cancelled"];
  const NAMES = { nifti: ["NIfTI", ".nii.gz"], nrrd: ["NRRD (3D Slicer)", ".seg.nrrd"], "dicom-seg": ["DICOM-SEG", ".seg.dcm"] };
  const EVERY_MS = 400;
  let models = [];

  const headers = () => (part("token").value ? { Authorization: `Bearer ${part("token").value.trim()}` } : {});
  const pause = () => new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  function complain(text) {
    part("problem").textContent = text;
    part("problem").hidden = !text;
  }

  async function ask(address, options = {}) {
    const answer = await fetch(address, { ...options, headers: headers() });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(told.message || `the server answers ${answer.status}`), { status: answer.status });
  }

  // models

  async function start() {
    try {
      models = await (await ask("/models")).json();
    } catch (error) {
      part("token-row").hidden = error.status !== 401 && part("token-row").hidden;
      part("classes").textContent = error.status === 401 ? "This server wants its token." : `No models: ${error.message}`;
      return;
    }
    part("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
    describe();
  }

  function describe() {
    const model = models.find((each) => each.name === part("model").value);
    if (!model) return;
    const files = model.channels > 1 ? ` It needs ${model.channels} files of each scan.` : "";
    part("classes").textContent = `Finds ${model.classes.join(", ")}.${files}`;
    part("intensity").replaceChildren(...model.intensities.map((name) => new Option(name.toUpperCase(), name)));
    part("intensity-row").hidden = model.intensities.length < 2;
  }

  // A folder of DICOM travels as one archive: entries that are stored as they are, under numbers.

  const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });

  function checksum(bytes) {
    let sum = 0xffffffff;
    for (const byte of bytes) sum = CRC[(sum ^ byte) & 255] ^ (sum >>> 8);
    return (sum ^ 0xffffffff) >>> 0;
  }

  // Numbers of a record: [value, bytes], least significant byte first.
  function record(...numbers) {
    const bytes = new Uint8Array(numbers.reduce((size, [, width]) => size + width, 0));
    let place = 0;
    for (let [value, width] of numbers) {
      for (; width > 0; width--, value = Math.floor(value / 256)) bytes[place++] = value % 256;
    }
    return bytes;
  }

  async function archive(files) {
    const parts = [], directory = [], coder = new TextEncoder();
    let offset = 0;
    for (const [number, file] of files.entries()) {
      const content = new Uint8Array(await file.arrayBuffer());
      const name = coder.encode(String(number).padStart(6, "0"));
      const about = [[20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [checksum(content), 4], [content.length, 4], [content.length, 4], [name.length, 2], [0, 2]];
      const head = record([0x04034b50, 4], ...about);
      directory.push(record([0x02014b50, 4], [20, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name);
      parts.push(head, name, file);
      offset += head.length + name.length + content.length;
    }
    const size = directory.reduce((sum, each) => sum + each.length, 0);
    const end = record([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
    return new File([...parts, ...directory, end], "series.zip");
  }

  // jobs

  const isScan = (file) => /\.(nii|nii\.gz|nrrd|mha|zip)$/i.test(file.name);

  async function send(files) {
    complain("");
    const found = files.filter((file) => !file.name.startsWith(".") && file.size);
    if (!found.length) return complain("There is no file in this.");
    const scans = found.filter(isScan).sort((a, b) => (a.name < b.name ? -1 : 1));
    const model = models.find((each) => each.name === part("model").value);
    if (!model) return complain("The server has named no model yet.");
    if (!scans.length) {
      const name = (found[0].webkitRelativePath || "").split("/")[0] || found[0].name;
      return follow(name, async () => [await archive(found)]);
    }
    if (model.channels > 1) return follow(scans[0].name, async () => scans);
    scans.forEach((file) => follow(file.name, async () => [file]));
    if (scans.length < found.length) complain(`${plural(found.length - scans.length, "file")} passed over: scans are sent without other files.`);
  }

  function upload(form, told) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "/jobs");
      Object.entries(headers()).forEach(([name, value]) => request.setRequestHeader(name, value));
      request.responseType = "json";
      request.upload.onprogress = (event) => told(request, event.loaded / event.total);
      request.onload = () => (request.status === 202 ? resolve(request.response) : reject(new Error((request.response || {}).message || `the server answers ${request.status}`)));
      request.onerror = () => reject(new Error("the server does not answer, or took no more of the scan"));
      request.onabort = () => reject(new Error("cancelled"));
      request.send(form);
    });
  }

  async function follow(name, prepare) {
    const shown = part("job").content.cloneNode(true).firstElementChild;
    const at = (selector) => shown.querySelector(selector);
    const say = (text, done) => {
      if (at(".state").textContent !== text) at(".state").textContent = text;
      if (done === undefined) at("progress").removeAttribute("value");
      else at("progress").value = done;
    };
    at("h2").textContent = name;
    part("jobs").prepend(shown);
    let stop = () => {};
    at(".cancel").addEventListener("click", () => stop());
    try {
      say("Being packed ...");
      const form = new FormData();
      form.append("model", part("model").value);
      form.append("intensity", part("intensity").value);
      form.append("page", "true");
      (await prepare()).forEach((file) => form.append("scan", file));
      let job = await upload(form, (request, done) => {
        stop = () => request.abort();
        say("Being sent ...", done);
      });
      const address = `/jobs/${job.id}`;
      stop = () => ask(address, { method: "DELETE" });
      while (!OVER.includes(job.state)) {
        if (job.state === "waiting") say(`Waiting; ${plural(job.ahead, "scan")} before it.`);
        else if (!job.total || job.done === job.total) say(job.total ? "Being written ..." : "Being read ...");
        else say("Being segmented ...", job.done / job.total);
        await pause();
        job = await (await ask(address)).json();
      }
      await finish(shown, at, name, job, address);
    } catch (error) {
      fail(at, error.message);
    }
  }

  function fail(at, text) {
    at("progress").hidden = true;
    at(".cancel").remove();
    at(".state").textContent = text;
    at(".state").classList.add("caution");
  }

  async function finish(shown, at, name, job, address) {
    if (job.state !== "done") {
      const error = job.error || {};
      const more = ["found", "expected", "do"].filter((each) => error[each]).map((each) => `${each}: ${error[each]}`);
      return fail(at, job.state === "cancelled" ? "Cancelled." : [error.what, ...more].join("; "));
    }
    at("progress").hidden = true;
    at(".state").textContent = `Done by ${job.model} in ${Math.max(1, Math.round(job.seconds))} s.${job.worker_deaths ? " The process with the model died once over it, and began again." : ""}`;
    at(".warnings").replaceChildren(...job.warnings.map((each) => Object.assign(document.createElement("li"), { textContent: `${each.what}; ${each.do}` })));
    const stem = name.replace(/\.(nii|nii\.gz|nrrd|mha|zip)$/i, "");
    const buttons = Object.keys(job.formats).map((format) => {
      const [text, ending] = NAMES[format];
      return button(`Download ${text}`, () => save(job.formats[format], stem + ending));
    });
    const remove = button("Remove from the server", async () => {
      await ask(address, { method: "DELETE" });
      shown.remove();
    });
    at(".choose").replaceChildren(...buttons, remove);
    if (job.page) await draw(at("iframe"), job.page, name);
  }

  function button(text, act) {
    const made = Object.assign(document.createElement("button"), { type: "button", className: "button", textContent: text });
    made.addEventListener("click", () => act().catch((error) => complain(error.message)));
    return made;
  }

  async function save(address, name) {
    const link = Object.assign(document.createElement("a"), { download: name });
    link.href = URL.createObjectURL(await (await ask(address)).blob());
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // The page of a result stands by itself; it is as high as what it shows.
  async function draw(frame, address, name) {
    frame.title = `Result of ${name}`;
    frame.hidden = false;
    frame.addEventListener("load", () => {
      const root = frame.contentDocument.documentElement;
      const fit = () => { frame.style.height = `${root.scrollHeight}px`; };
      new ResizeObserver(fit).observe(root);
      fit();
    });
    frame.srcdoc = await (await ask(address)).text();
  }

  // what is dropped: files, or folders with files

  function inside(entry) {
    if (entry.isFile) return new Promise((resolve, reject) => entry.file((file) => resolve([file]), reject));
    const reader = entry.createReader(), found = [];
    const more = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    return (async () => {
      for (let next = await more(); next.length; next = await more()) found.push(...next);
      return (await Promise.all(found.map(inside))).flat();
    })();
  }

  async function dropped(event) {
    event.preventDefault();
    part("drop").classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(inside))).flat() : [...event.dataTransfer.files];
    await send(files);
  }

  for (const name of ["files", "folder"]) {
    part(name).addEventListener("change", (event) => {
      send([...event.target.files]);
      event.target.value = "";
    });
  }
  part("drop").addEventListener("dragover", (event) => { event.preventDefault(); part("drop").classList.add("over"); });
  part("drop").addEventListener("dragleave", () => part("drop").classList.remove("over"));
  part("drop").addEventListener("drop", dropped);
  part("ask").addEventListener("submit", (event) => event.preventDefault());
  part("token").addEventListener("change", start);
  part("model").addEventListener("change", describe);
  start();
})();
