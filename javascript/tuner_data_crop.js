// Crops of an open folder: what is known of them, and saving what was moved. The section is drawn by tuner_data_cropping.js, frames by tuner_data_frame.js.
"use strict";

(function (tuner) {
    const COUNT = 1200, MOST = 500, KEPT = "tuner-crop"; // ms before pictures are counted anew; rows that the server answers at once
    const data = tuner.data = tuner.data || {};
    (data.parts = data.parts || []).push({ mount, drawn: () => {}, asked: (rows) => crops.any && load(rows) });
    // known: by row, as the server has them and what is not saved yet; fields: the settings, as the server describes them; values: of the fields; any: whether the folder has crops; undoable: what the server would take back
    const crops = data.crops = { known: new Map(), folder: null, any: false, fields: null, values: {}, counts: null, undoable: null };
    let counting = null, chain = Promise.resolve(), undone = chain, epoch = 0, described = null, failures = 0; // chain, undone: orders go one after the other; described: the fields, once they are here; failures: of saving
    const asked = new Map(), dirty = new Map(), latest = new Map(), marks = new Map(), refused = new Map(); // by row: the answer that is waited for; the timer of its saving; the last order that was given; by folder and row: the mark of the crops that the page has seen; how often it was refused

    // ---- settings ----

    // Settings that mean something with others alone; those that are not shown are not sent.
    const ONLY = { quality: ({ form }) => form !== "png", faces: ({ focus }) => ["auto", "face"].includes(focus), split_below: ({ split }) => split !== "off", overlap: ({ split }) => split !== "off" };
    crops.means = ({ key }) => !ONLY[key] || ONLY[key](crops.values);
    crops.given = (of) => Object.fromEntries(crops.fields.filter((field) => field.of === of && crops.means(field)).map(({ key }) => [key, crops.values[key]]));

    // The settings there are, with what this browser has kept of them.
    crops.described = () => (described = described || describe().catch((error) => { described = null; throw error; }));

    async function describe() {
        const fields = await tuner.get("data/crops/fields");
        let kept = {};
        try { kept = JSON.parse(localStorage.getItem(KEPT)) || {}; } catch (error) { /* a browser that keeps nothing, or other words */ }
        const fits = ({ key, value, choices }) => typeof kept[key] === typeof value && (!choices.length || choices.includes(kept[key]));
        for (const field of fields) crops.values[field.key] = fits(field) ? kept[field.key] : field.value;
        crops.fields = fields;
    }

    crops.set = function (key, value) {
        crops.values[key] = value;
        try { localStorage.setItem(KEPT, JSON.stringify(crops.values)); } catch (error) { /* a browser that keeps nothing */ }
    };

    const order = crops.order = (more = {}) => ({ crop: crops.given("crop"), ...more });
    const keyOf = (folder, row) => `${folder} ${row}`;

    function mount() {
        for (const row of [...dirty.keys()]) save(row);
        if (crops.folder !== data.folder.id) Object.assign(crops, { folder: data.folder.id, any: false, counts: null, undoable: null });
        forget();
    }

    // ---- what is known ----

    // The crops of these rows where they are not known yet; then they are drawn.
    const load = crops.load = async function (rows) {
        const missing = rows.filter((row) => !crops.known.has(row) && !asked.has(row)), waits = new Set(rows.map((row) => asked.get(row)).filter(Boolean));
        for (let at = 0; at < missing.length; at += MOST) {
            const some = missing.slice(at, at + MOST), answer = read(some);
            for (const row of some) asked.set(row, answer);
            waits.add(answer);
        }
        await Promise.all(waits);
    };

    // `before` is waited for: what is being saved is not to be overtaken by what was there.
    async function read(rows, before = chain) {
        const mine = epoch, folder = crops.folder;
        try {
            await Promise.all([before, crops.described()]);
            if (mine !== epoch) return;
            const found = await data.send("crops/read", order({ rows }));
            if (mine !== epoch) return;
            for (const row of rows) asked.delete(row);
            for (const entry of found.crops) {
                crops.known.set(entry.row, entry);
                marks.set(keyOf(folder, entry.row), entry.mark);
            }
            crops.wrong("");
            rows.forEach(crops.draw);
        } catch (error) {
            for (const row of rows) if (mine === epoch) asked.delete(row);
            if (mine === epoch) crops.wrong(error.message);
        }
    }

    // Everything anew: another size, or crops that were found.
    crops.anew = async function () {
        const rows = [...crops.known.keys()];
        forget();
        await Promise.all([load(rows), count()]);
    };

    function forget() {
        epoch++;
        for (const row of [...crops.known.keys()]) if (!dirty.has(row)) crops.known.delete(row); // one that is being moved stays
        asked.clear();
    }

    const count = crops.count = async function () {
        clearTimeout(counting);
        if (!data.folder) return;
        const mine = epoch;
        try {
            await crops.described();
            const found = await data.send("crops/summary", order());
            if (mine === epoch) counted(found);
        } catch (error) {
            crops.wrong(error.message);
        }
    };

    function counted(found) {
        const before = crops.any;
        Object.assign(crops, { counts: found, undoable: found.undo });
        crops.any = (found.states.none || 0) < found.pictures;
        crops.wrong("");
        crops.drawCounts();
        if (crops.any && !before) data.place();
    }

    const countSoon = () => { clearTimeout(counting); counting = setTimeout(count, COUNT); };

    // ---- what is changed ----

    const copy = (list) => list.map((crop) => ({ ...crop }));

    // Something was moved: it is saved after `wait` ms without another change.
    crops.changed = function (row, wait = 0) {
        clearTimeout(dirty.get(row));
        dirty.set(row, setTimeout(() => save(row), wait));
        crops.draw(row);
    };

    // Nothing is saved, and no answer drawn, while a frame is held; what was changed before is a change of its own.
    crops.hold = function (row) {
        if (dirty.get(row)) save(row);
        dirty.set(row, null);
    };

    function save(row) {
        clearTimeout(dirty.get(row));
        dirty.delete(row);
        const entry = crops.known.get(row), mine = epoch, folder = crops.folder, key = keyOf(folder, row), turn = refused.get(key);
        if (!entry) return chain;
        const body = order({ row, crops: copy(entry.crops).map(({ x, y, zoom, target, state }) => ({ x, y, zoom, target, state })) });
        latest.set(row, body);
        chain = chain.then(async () => {
            if (refused.get(key) !== turn) return; // it was a change of crops that are others now
            try {
                const answer = await tuner.send(`data/${folder}/crops/change`, { ...body, was: marks.get(key) }); // that of the picture, also where another was opened meanwhile
                marks.set(key, answer.mark);
                if (mine === epoch && !dirty.has(row) && latest.get(row) === body) crops.known.set(row, answer); // else the page is further on than this answer
                if (folder === crops.folder) Object.assign(crops, { any: true, undoable: answer.undo });
            } catch (error) {
                failures++;
                refused.set(key, (turn || 0) + 1);
                data.say(error.message, true);
                if (mine === epoch) { crops.known.delete(row); await read([row], null); }
            }
            crops.draw(row);
            crops.drawUndo();
            countSoon();
        });
        return chain;
    }

    // Saves what is not saved yet, and waits for it. Raises "" where that was refused, which has been said: nothing may be done then as if it were saved.
    crops.flush = async function () {
        const before = failures;
        for (const row of [...dirty.keys()]) save(row);
        await chain;
        if (failures !== before) throw new Error("");
    };

    crops.saving = (row) => dirty.has(row);

    // What the server answered, and the crops of these rows anew.
    async function replaced(answer, rows) {
        counted(answer);
        const gone = rows.filter((row) => crops.known.has(row) && !dirty.has(row));
        for (const row of gone) crops.known.delete(row);
        await load(gone);
    }

    // Takes back what was done last, after what is still being moved; which pictures it was.
    crops.undo = () => (undone = crops.settled().then(undo));

    // The undo that is under way: what comes after it is for the crops that it brings back.
    crops.settled = () => undone.catch(() => {});

    async function undo() {
        await crops.flush();
        if (!crops.undoable) return [];
        try {
            const answer = await data.send("crops/undo", order({ number: crops.undoable.number }));
            await replaced(answer, answer.rows);
            return answer.rows;
        } catch (error) {
            await crops.anew(); // somebody else has done something
            throw error;
        }
    }

    // Approves the crops of a scope; how many pictures that changed. `seen`: the scope is this one picture, and the crops that are seen are meant.
    crops.approve = async function (scope, seen = null) {
        await crops.flush();
        try {
            const answer = await data.send("crops/approve", order({ ...scope, was: seen === null ? null : marks.get(keyOf(crops.folder, seen)) }));
            await replaced(answer, scope.rows || [...crops.known.keys()]);
            return answer.approved;
        } catch (error) {
            await crops.anew();
            throw error;
        }
    };

    crops.find = async function (scope, again = false) {
        await crops.described();
        await crops.flush();
        try {
            return await data.begin("crops/find", order({ ...scope, again }));
        } finally { // also where it was stopped: what was found until then is there
            await crops.anew();
            if (crops.any) data.place();
        }
    };

    window.addEventListener("beforeunload", (event) => { if (dirty.size) { crops.flush().catch(() => {}); event.preventDefault(); } });
})(window.tuner);
