// The data-set panel: the folder that is open, the filter, the tags, and what can be taken back. All of it lies on the server; what is done is done there at once.
"use strict";

(function (tuner) {
    const { h } = tuner;
    const WAIT = 200, TAGS = 300, KEPT = "tuner-folder"; // ms after the last key; tags that are listed at once
    const byId = (id) => document.getElementById(id);
    // rows: those that the filter names; details: what is known of rows; selected: rows; stamp: goes up when pictures may look different
    const data = tuner.data = Object.assign(tuner.data || {}, { folder: null, rows: [], details: new Map(), selected: new Set(), filter: "", like: "", tags: [], distinct: 0, stamp: 0, ready: true });
    data.parts = data.parts || []; // {mount(page), drawn()}: what other scripts draw into the page of an open folder
    let timer = null, likeTimer = null, asked = 0;

    (tuner.views = tuner.views || { all: [] }).all.push({ name: "data", label: () => tuner.t("Pictures and captions"), box: "tuner-dataset", opened: () => { data.draw(); reopen(); } });

    data.get = (path) => tuner.get(`data/${data.folder.id}/${path}`);
    data.send = (path, body) => tuner.send(`data/${data.folder.id}/${path}`, body);

    Object.assign(data, tuner.speaking(() => byId("tuner-d-message")));

    // ---- opening ----

    function remembered() {
        try { return localStorage.getItem(KEPT) || ""; } catch (error) { return ""; }
    }

    let first = true, named = false; // no folder was asked for since the page was loaded; somebody has named one

    // The folder of the last time, where it is still there and nobody has begun to name another one.
    async function reopen() {
        const folder = remembered(), input = byId("tuner-d-folder");
        if (!first || data.folder || !folder || !input) return;
        first = false;
        const opened = await tuner.send("data/open", { folder }).catch(() => null);
        if (opened && !named && !data.folder && input.isConnected && input.value === folder) data.doing(() => take(opened))();
    }

    async function open(folder) {
        first = false;
        named = true;
        await take(await tuner.send("data/open", { folder }));
    }

    async function take(opened) {
        const lost = await leave(); // also what was typed while the folder was being read
        try { localStorage.setItem(KEPT, opened.folder); } catch (error) { /* a browser that keeps nothing */ }
        Object.assign(data, { folder: opened, rows: [], filter: "", like: "", current: null, details: new Map(), selected: new Set(), stamp: data.stamp + 1 });
        data.draw(true);
        await data.look();
        if (lost) await data.view.again(lost);
    }

    // Saves what was typed. Words for a folder that the program does not know any more, since it was started anew, are no reason to stay in it: they go along.
    async function leave() {
        try {
            if (data.view) { await data.view.added(); await data.view.flush(); }
        } catch (error) {
            if (error.status !== 404) throw error;
            return data.view.typed();
        }
        return null;
    }

    data.open = (folder) => open(folder);

    // ---- what is shown ----

    // Rows and tags anew, after an edit or with another filter.
    data.look = async function () {
        const mine = ++asked;
        const query = encodeURIComponent(data.filter);
        try {
            const [found, tags] = await Promise.all([data.get(`rows?filter=${query}`), data.get(`tags?filter=${query}&like=${encodeURIComponent(data.like)}&limit=${TAGS}`)]);
            if (mine !== asked) return;
            if (found.version !== data.folder.version) data.details.clear(); // another page has changed something
            data.folder.version = found.version;
            Object.assign(data, { rows: found.rows, tags: tags.tags, distinct: tags.distinct });
            byId("tuner-d-filter").classList.remove("tuner-bad-input");
            tuner.text(byId("tuner-d-wrong"), "");
            tuner.text(byId("tuner-d-hint"), found.hints.map(tuner.said).join(" "));
        } catch (error) {
            if (mine !== asked) return;
            byId("tuner-d-filter").classList.add("tuner-bad-input");
            tuner.text(byId("tuner-d-wrong"), error.message);
            tuner.text(byId("tuner-d-hint"), "");
            return;
        }
        data.drawn();
    };

    // What an order answered: what can be taken back, and everything that it may have changed.
    data.changed = async function (answer) {
        Object.assign(data.folder, { version: answer.version, pictures: answer.pictures, undo: answer.undo, redo: answer.redo });
        data.details.clear();
        await data.look();
        if (data.view) data.view.refresh();
    };

    // Asks what is known of rows; says whether it is known now. An answer that comes after a change may say what was before it.
    data.learn = async function (rows) {
        const { id, version } = data.folder, found = await data.send("details", { rows });
        if (!data.folder || data.folder.id !== id || data.folder.version !== version) return false;
        for (const each of found) data.details.set(each.row, each);
        return true;
    };

    data.edit = async (name, args, rows) => data.changed(await data.write("edit", { name, args, rows }));

    // The one that the button names: what was typed meanwhile is an edit of its own, and is not taken back in its place.
    const turn = (way) => async () => {
        const meant = data.folder[way];
        if (data.view) await data.view.flush();
        if (!meant) return;
        let answer = await data.write(way, { number: meant.number, partly: false });
        if (answer.ask) { // files were changed since
            if (!window.confirm(tuner.said(answer.ask))) return;
            answer = await data.write(way, { number: meant.number });
        }
        await data.changed(answer);
        if (answer.told) data.say(tuner.said(answer.told), true);
    };
    data.undo = turn("undo");
    data.redo = turn("redo");

    // What somebody has typed and could not save is in its field again, beside what the file says now.
    async function read() {
        const { id } = data.folder, found = await data.send("read"), typed = data.view && data.view.typed(); // also what was typed while it was read
        if (data.folder.id !== id) return; // another folder was opened meanwhile
        data.folder = found;
        data.stamp++;
        data.details.clear();
        data.draw(true);
        await data.look();
        if (typed) await data.view.again(typed);
    }

    // The page of the folder; `anew`: also where it is drawn already.
    data.draw = function (anew = false) {
        const root = byId("tuner-data-root");
        if (!data.folder) {
            if (anew || !byId("tuner-d-folder")) root.replaceChildren(opener(), message(), h("p", { class: "tuner-small" }, tuner.t("Pictures with captions beside them (.txt or .caption) are shown as a grid: filter them, edit captions one by one or all at once, and take everything back. Pictures are never changed.")));
            return;
        }
        if (!anew && byId("tuner-d-grid")) { data.drawn(); return; }
        root.replaceChildren(opener(), bar(), message(), problems(), h("div", { class: "tuner-d-page" }, h("div", { class: "tuner-d-main" }), h("div", { class: "tuner-d-side" })));
        const main = root.querySelector(".tuner-d-main"), side = root.querySelector(".tuner-d-side");
        main.append(filterRow());
        side.append(tagBox());
        for (const part of data.parts) part.mount(main, side);
        data.drawn();
    };

    const message = () => h("p", { id: "tuner-d-message", class: "tuner-d-message", role: "status", hidden: true });

    function opener() {
        const input = h("input", { type: "text", id: "tuner-d-folder", value: data.folder ? data.folder.folder : remembered(), placeholder: tuner.t("Folder with pictures, such as D:\\pictures\\my-cat"), spellcheck: "false", "aria-label": tuner.t("Folder") });
        const go = data.doing(async () => {
            await leave();
            await open(input.value);
        });
        return h("form", { class: "tuner-d-opener", onsubmit: (event) => { event.preventDefault(); go({ currentTarget: byId("tuner-d-open") }); } },
            input, h("button", { type: "submit", id: "tuner-d-open", class: "tuner-button tuner-strong" }, tuner.t("Open")));
    }

    function bar() {
        const button = (id, action, text) => h("button", { type: "button", id, class: "tuner-button", onclick: data.doing(action) }, text);
        return h("div", { class: "tuner-d-bar" }, h("strong", { id: "tuner-d-count" }), h("span", { id: "tuner-d-saved", class: "tuner-small", role: "status" }),
            h("span", { class: "tuner-d-space" }), button("tuner-d-undo", data.undo, ""), button("tuner-d-redo", data.redo, ""),
            button("tuner-d-read", read, tuner.t("Read anew")), button("tuner-d-train", train, tuner.t("Train on this")));
    }

    function problems() {
        const all = Object.values(data.folder.problems).reduce((sum, n) => sum + n, 0);
        const told = [...(data.folder.editable ? [] : [h("p", { class: "tuner-bad-text" }, tuner.said(data.folder.reason))]),
            ...(all ? [h("details", {}, h("summary", {}, tuner.count(all, "{0} thing to know", "{0} things to know")), h("ul", {}, data.folder.told.map((text) => h("li", {}, tuner.said(text)))))] : [])];
        return h("div", { class: "tuner-d-problems" }, told);
    }

    // The folder becomes that of the Train form, with what other parts know of it, as if somebody had typed it there.
    async function train() {
        if (data.view) await data.view.flush();
        const field = form("data.folder");
        if (!field) throw new Error(tuner.t("The form for training is not on this page."));
        set(field, data.folder.folder);
        const said = data.parts.flatMap((part) => (part.toTrain ? part.toTrain({ value: (key) => (form(key) || {}).value, set: (key, value) => form(key) && set(form(key), value) }) : []));
        tuner.views.show("train");
        if (said.length) tuner.say(said.join(" "));
        field.scrollIntoView({ block: "center" });
        field.focus();
    }

    const form = (key) => document.querySelector(["textarea", "input"].map((tag) => `#tuner-f-${key.replace(".", "-")} ${tag}`).join(", "));

    function set(field, value) {
        field.value = value;
        for (const name of ["input", "change", "blur"]) field.dispatchEvent(new Event(name, { bubbles: true }));
    }

    // ---- the filter ----

    function filterRow() {
        const input = h("input", { type: "search", id: "tuner-d-filter", value: data.filter, placeholder: tuner.t("Filter: lips, NOT closed mouth, tags:>13, untagged, name:*.png"), spellcheck: "false", autocomplete: "off",
            "aria-label": tuner.t("Filter"), "aria-describedby": "tuner-d-wrong", oninput: () => {
                clearTimeout(timer);
                timer = setTimeout(() => { data.filter = input.value; data.look(); }, WAIT);
            } });
        return h("div", { class: "tuner-d-filter" }, input, h("span", { id: "tuner-d-found", class: "tuner-small", role: "status" }), h("p", { id: "tuner-d-wrong", class: "tuner-bad-text", role: "alert" }), h("p", { id: "tuner-d-hint", class: "tuner-small", role: "status" }),
            h("details", { class: "tuner-small", id: "tuner-d-help" }, h("summary", {}, tuner.t("Filter and keys")), help()));
    }

    data.setFilter = function (text) {
        data.filter = byId("tuner-d-filter").value = text;
        return data.look();
    };

    const HELP = () => [
        ["long hair, NOT hat", tuner.t("a tag and not another; a comma is AND, OR and parentheses work too")], ["*hair*", tuner.t("* stands for any letters, ? for one")],
        ['"saber (fate)"', tuner.t("quotes around blanks and parentheses")], ["name:*.png  path:10_cat  text:\"a cat\"", tuner.t("parts of the file name, the path, the caption")],
        ["tags:>13  tokens:>75  chars:<20  lines:2", tuner.t("how much a caption holds")], ["untagged", tuner.t("pictures without a caption")],
        ["← → ↑ ↓  J  K", tuner.t("from picture to picture")], ["Enter", tuner.t("the picture in large, with its caption; Escape leaves it")], [`${tuner.t("Space")}  Ctrl+A`, tuner.t("select; all that are shown")],
        ["/  T  Delete", tuner.t("to the filter; add a tag; picture and caption into the trash")], ["C  V", tuner.t("copy a picture's tags; paste them into what is selected")], ["U  Ctrl+Z  Ctrl+Y", tuner.t("undo, redo")],
    ];

    const help = () => h("dl", { class: "tuner-d-keys" }, HELP().flatMap(([keys, text]) => [h("dt", {}, h("code", {}, keys)), h("dd", {}, text)]));

    // ---- tags ----

    function tagBox() {
        const input = h("input", { type: "search", id: "tuner-d-like", value: data.like, placeholder: tuner.t("Find a tag"), "aria-label": tuner.t("Find a tag"), spellcheck: "false", autocomplete: "off", oninput: () => {
            clearTimeout(likeTimer);
            likeTimer = setTimeout(() => { data.like = input.value; data.look(); }, WAIT);
        } });
        return h("section", { class: "tuner-d-tags" }, h("h4", { id: "tuner-d-tags-head" }), input, h("ul", { id: "tuner-d-tags", "aria-labelledby": "tuner-d-tags-head" }));
    }

    // A tag as the filter reads it: in quotes where it holds what the filter reads otherwise, * and ? with a backslash.
    const QUOTE = String.fromCharCode(34), SPECIAL = [...`(),*?:\\${QUOTE}`];
    const escaped = (text, letters) => [...text].map((letter) => (letters.includes(letter) ? `\\${letter}` : letter)).join("");
    const quoted = data.quoted = (tag) => (SPECIAL.some((letter) => tag.includes(letter)) || /\b(AND|OR|NOT)\b|^untagged$| {2}/.test(tag) ? QUOTE + escaped(tag, ["\\", QUOTE, "*", "?"]) + QUOTE : tag);

    function drawTags() {
        tuner.text(byId("tuner-d-tags-head"), tuner.t("Tags: {0}", data.distinct.toLocaleString(tuner.language.locale)));
        const row = ([tag, count]) => h("li", { "data-tag": tag },
            h("button", { type: "button", class: "tuner-d-tag", title: tuner.t("Show the pictures that have it"), onclick: data.doing(() => data.setFilter(quoted(tag))) }, h("span", {}, tag), h("small", {}, String(count))),
            h("button", { type: "button", class: "tuner-d-drop", title: tuner.t("Remove it everywhere"), "aria-label": tuner.t("Remove {0} everywhere", tag), onclick: data.doing(() => data.preview("remove", { tags: [tag] }, "all")) }, "×"));
        const rest = data.distinct - data.tags.length;
        const list = byId("tuner-d-tags");
        tuner.keepFocus(list, () => list.replaceChildren(...data.tags.map(row), ...(rest > 0 ? [h("li", { class: "tuner-small" }, tuner.t("and {0} more: type a part of the name", rest))] : [])));
    }

    // ---- after a change ----

    data.drawn = function () {
        const count = (n) => n.toLocaleString(tuner.language.locale), { folder, rows } = data;
        tuner.text(byId("tuner-d-count"), tuner.count(folder.pictures, "{0} picture", "{0} pictures"));
        tuner.text(byId("tuner-d-found"), rows.length === folder.pictures ? tuner.t("all") : tuner.t("{0} of {1} pictures", count(rows.length), count(folder.pictures)));
        tuner.text(byId("tuner-d-saved"), folder.editable ? tuner.t("Everything is saved.") : tuner.t("To look at only: nothing can be written here."));
        const step = (button, text, entry) => {
            tuner.text(button, entry ? `${text}: ${data.named(entry)}` : text);
            button.disabled = !entry;
        };
        step(byId("tuner-d-undo"), tuner.t("Undo"), folder.undo);
        step(byId("tuner-d-redo"), tuner.t("Redo"), folder.redo);
        const there = new Set(rows);
        data.selected = new Set([...data.selected].filter((row) => there.has(row)));
        drawTags();
        for (const part of data.parts) part.drawn();
    };

    // An entry of the journal in a few words.
    data.named = function (entry) {
        const words = (value) => (value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).filter((pair) => typeof pair[1] === "string").map((pair) => pair.join(" → ")) : value);
        const args = Object.values(entry.edit === "tag" ? Object.keys(entry.args.taggers || {}) : entry.edit === "caption" ? [entry.args.captioner] : entry.args).map(words).flat().filter((value) => typeof value === "string").join(", ");
        const short = args.length > 24 ? `${args.slice(0, 23)}…` : args;
        return `${data.editName(entry.edit)}${short ? ` ${short}` : ""} (${entry.files})`;
    };

    data.mount = function () {
        const typed = data.folder && data.view && data.view.typed();
        data.draw(Boolean(byId("tuner-data-root").querySelector("form")));
        if (typed && !data.view.typed()) data.doing(() => data.view.again(typed))();
    };
})(window.tuner);
