// Settings by their labels: a sentence of the server names them by their keys, which no form shows.
"use strict";

(function (tuner) {
    const HEAD = /^([a-z][a-z0-9_.]*)(: |：)/; // `optim.lr: ...`
    const DOTTED = /(?<![\w./\\-])`?([a-z][a-z0-9]*(?:[._][a-z0-9]+)+)`?(?![\w/\\-]|\.\w)/g; // a word that no language has
    const MARKED = /`([a-z]+)`/g;
    // a key that is a word as well, where it can be nothing but a key
    const SETS = /(?<=\b(?:set|turn|but|leave|file in) |(?:把|将|设|但|关闭|打开) ?)([a-z]+)(?= (?:to|is|on|off|empty|has)\b| ?(?:设|为|留|中))/g;

    // The text, line by line, with labels for keys. `labelOf`: key -> label in the page's language, or null; a line that begins with `own`, the key of the field at which
    // it stands, begins behind it.
    tuner.labelled = function (text, labelOf, own = "") {
        const short = own.slice(own.lastIndexOf(".") + 1);
        return (text || "").split("\n").map((line) => {
            const head = HEAD.exec(line), name = head && labelOf(head[1]);
            const rest = name ? within(line.slice(head[0].length), labelOf) : within(without(line, own, short), labelOf);
            return !name || [own, short].includes(head[1]) ? rest : name + head[2] + rest;
        }).join("\n");
    };

    function without(line, own, short) {
        const found = own && [own, short].find((key) => line.startsWith(`${key} `) || line.startsWith(`${key}（`) || line.startsWith(`${key}: `) || line.startsWith(`${key}：`));
        return found ? line.slice(found.length).replace(/^(: |：| )/, "") : line;
    }

    function within(text, labelOf) {
        const quoted = (whole, key) => { const label = labelOf(key); return label ? `“${label}”` : whole; };
        const said = text.replace(DOTTED, quoted).replace(MARKED, quoted).replace(SETS, quoted);
        return said === text ? text : said.replace(/(?<=[\u4e00-\u9fff，；：。]) (?=“)|(?<=”) (?=[\u4e00-\u9fff，；：。])/g, ""); // Latin letters had blanks beside Chinese ones
    }

    // ---- settings of a run ----

    let read = null, labels = {};

    function known() {
        const text = tuner.root.dataset.labels || "{}";
        if (read !== text) [read, labels] = [text, JSON.parse(text)];
        return labels;
    }

    // The label of a setting by its whole key.
    tuner.settingLabel = (key) => (Object.hasOwn(known(), key) ? tuner.t(known()[key]) : null);

    // A setting in a table: the label, and the key for who writes settings by hand.
    tuner.settingNamed = function (key) {
        const label = tuner.settingLabel(key);
        return label ? [label, " ", tuner.h("small", {}, key)] : [key];
    };

    // A sentence about settings, said at the field with this id or elsewhere; a short key is one of the field's own section, or of any where all mean the same.
    tuner.saidOfSettings = function (text, id = "") {
        const keys = Object.keys(known()), own = keys.find((key) => id === `tuner-f-${key.replaceAll(".", "-")}`) || "", section = own.slice(0, own.lastIndexOf(".") + 1);
        const labelOf = (key) => {
            const meant = [key, section + key].find((one) => Object.hasOwn(known(), one));
            if (meant) return tuner.settingLabel(meant);
            const same = new Set(keys.filter((one) => key.includes("_") && one.endsWith(`.${key}`)).map((one) => known()[one]));
            return same.size === 1 ? tuner.t([...same][0]) : null;
        };
        return tuner.labelled(tuner.said(text), labelOf, own);
    };
})(window.tuner);
