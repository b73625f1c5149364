// Byte-pair encoding by hand: learn merges from a text, then encode a word with them (chapter 9).
// The pure functions are those of minidiff/models/tokenizer.py and bpe.py; a pair is a string "a b" (no token has a
// space), and the order of these strings is the order of the tuples.
"use strict";
{
  const { make, svg } = minidiff;
  const END = "</w>";
  const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const WORD = new RegExp(
    `(<\\|)(startoftext|endoftext)(\\|>)|'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^\\p{L}\\p{N}${SPACE}]+`, "gu");

  /** A printable character for each of the 256 bytes: Latin-1's own, or one from U+0100 on. */
  const characters = (() => {
    const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    let next = 256;
    return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
  })();

  const normalize = (text) => [...text.normalize("NFC").replace(new RegExp(`[${SPACE}]+`, "gu"), " ")]
    .map((character) => character.toLowerCase()).join("");

  const words = (text) => [...text.matchAll(WORD)].flatMap((match) => (match[1] ? match.slice(1) : [match[0]]));

  /** A word as one token per byte, the last with </w>. */
  function byteTokens(word) {
    const tokens = [...new TextEncoder().encode(word.replace(/\p{Cs}/gu, "?"))].map((byte) => characters[byte]);
    return [...tokens.slice(0, -1), tokens.at(-1) + END];
  }

  const pairsOf = (tokens) => tokens.slice(1).map((token, i) => `${tokens[i]} ${token}`);

  /** The tokens of a word with every adjacent occurrence of the pair merged, from left to right. */
  function merge(tokens, pair) {
    const merged = [];
    for (let i = 0; i < tokens.length; i++) {
      if (i + 1 < tokens.length && `${tokens[i]} ${tokens[i + 1]}` === pair) merged.push(tokens[i] + tokens[++i]);
      else merged.push(tokens[i]);
    }
    return merged;
  }

  /** The distinct words of a text: [{word, count, tokens}], the tokens being bytes. */
  function wordCounts(text) {
    const counts = new Map();
    for (const word of words(normalize(text))) counts.set(word, (counts.get(word) ?? 0) + 1);
    return [...counts].map(([word, count]) => ({ word, count, tokens: byteTokens(word) }));
  }

  /** [pair, count], the most frequent first; of equally frequent pairs the first in string order. */
  function pairCounts(entries) {
    const counts = new Map();
    for (const { tokens, count } of entries) {
      for (const pair of pairsOf(tokens)) counts.set(pair, (counts.get(pair) ?? 0) + count);
    }
    return [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  }

  /** The words after one merge. */
  const mergeAll = (entries, pair) => entries.map((entry) => ({ ...entry, tokens: merge(entry.tokens, pair) }));

  /** At most `size` merges, each of the pair that is most frequent by then; stops when no pair occurs twice. */
  function learnMerges(text, size = Infinity) {
    const merges = [];
    let entries = wordCounts(text);
    while (merges.length < size) {
      const [best] = pairCounts(entries);
      if (!best || best[1] < 2) break;
      merges.push(best[0]);
      entries = mergeAll(entries, best[0]);
    }
    return merges;
  }

  /** The merge trees of a word: leaves {token}, nodes {token, rank, left, right}; their roots are its tokens. */
  function tree(word, merges) {
    const ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    const nodes = byteTokens(word).map((token) => ({ token }));
    for (;;) {
      const rankAt = pairsOf(nodes.map((node) => node.token)).map((pair) => ranks.get(pair) ?? Infinity);
      const rank = Math.min(...rankAt);
      if (rank === Infinity) return nodes;
      const at = rankAt.indexOf(rank), [left, right] = nodes.slice(at, at + 2);
      nodes.splice(at, 2, { token: left.token + right.token, rank, left, right });
    }
  }

  /** The tokens of a text. */
  const encode = (text, merges) =>
    words(normalize(text)).flatMap((word) => tree(word, merges).map((node) => node.token));

  minidiff.bpe = { characters, normalize, words, byteTokens, wordCounts, pairCounts, learnMerges, tree, encode };

  const CAPTIONS = "black cat face\ncat face\ncat hat";
  const SHOWN = 6; // pairs in the table
  const LEVEL = 46; // height of a tree's levels, in CSS pixels

  /** A token in the colour of the merge that made it; bytes are grey. */
  function chip(token, merges) {
    const made = merges.findIndex((pair) => pair.replace(" ", "") === token);
    return make("span", { class: made < 0 ? "token" : `token colour-${made % 4}`, text: token });
  }

  /** The trees of a word, their leaves at the bottom. */
  function drawTrees(trees, label) {
    const height = (node) => (node.left ? 1 + Math.max(height(node.left), height(node.right)) : 0);
    const top = Math.max(...trees.map(height));
    const lines = [], labels = [];
    let right = 0;
    const place = (node) => {
      const y = 22 + LEVEL * (top - height(node));
      if (!node.left) {
        const column = Math.max(30, 7.3 * node.token.length + 12), x = right + column / 2;
        right += column;
        labels.push(svg("text", { x, y }, node.token));
        return [x, y];
      }
      const children = [place(node.left), place(node.right)];
      const x = (children[0][0] + children[1][0]) / 2;
      for (const child of children) lines.push(svg("line", { x1: x, y1: y + 20, x2: child[0], y2: child[1] - 14 }));
      labels.push(svg("text", { x, y }, node.token), svg("text", { x, y: y + 14, class: "rank" }, node.rank));
      return [x, y];
    };
    trees.forEach(place);
    const size = { width: right, height: 40 + LEVEL * top };
    return svg("svg", { ...size, role: "img", "aria-label": label }, ...lines, ...labels);
  }

  minidiff.widget("bpe", (body) => {
    let all = [], done = 0;

    const text = make("textarea", { rows: 3, maxlength: 1000, spellcheck: "false", oninput: learn });
    text.value = CAPTIONS;
    body.append(make("label", { class: "field" }, make("span", { text: "text" }), text));

    const player = minidiff.player(body, {
      label: "merges", steps: 0, show: (k) => `${k} of ${all.length}`, seconds: (n) => 1 + n,
      onmove: (k) => { done = k; update(); },
    });

    const panes = make("div", { class: "panes stacked" });
    const pane = (title) => {
      const content = make("div", { class: "rows" });
      minidiff.pane(panes, title).append(content);
      return content;
    };
    const wordList = pane("words, their counts and tokens");
    const pairTable = pane("most frequent pairs");
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    body.append(panes, readout);

    const word = make("input", { type: "text", maxlength: 40, spellcheck: "false", oninput: update });
    word.value = "catface";
    body.append(make("label", { class: "field" }, make("span", { text: "encode" }), word));
    const encoded = make("div", { class: "tokens" }), forest = make("div", { class: "forest" });
    body.append(encoded, forest);

    /** Learn the merges of the text and start before the first one. */
    function learn() {
      all = learnMerges(text.value);
      player.setSteps(all.length, 0);
    }

    function update() {
      const merges = all.slice(0, done);
      const entries = merges.reduce(mergeAll, wordCounts(text.value));
      const pairs = pairCounts(entries);
      wordList.replaceChildren(...entries.map(({ count, tokens }) => make("div", { class: "word" },
        make("span", { class: "count", text: `${count} ×` }), ...tokens.map((token) => chip(token, merges)))));
      pairTable.replaceChildren(...pairs.slice(0, SHOWN).map(([pair, count], i) => {
        const bar = make("span", { class: "bar" });
        bar.style.width = `${6 * count / pairs[0][1]}rem`;
        return make("div", { class: i || count < 2 ? "pair" : "pair best" },
          make("span", {}, ...pair.split(" ").map((token) => chip(token, merges))),
          bar, make("span", { class: "count", text: String(count) }));
      }));
      readout.textContent = explain(pairs);
      const parts = words(normalize(word.value)), trees = parts.map((part) => tree(part, merges));
      encoded.replaceChildren(...trees.flat().map((node) => chip(node.token, merges)));
      forest.replaceChildren(...parts.map((part, i) => drawTrees(trees[i], `Merge tree of ${part}`)));
    }

    function explain(pairs) {
      if (done === all.length) return "No pair occurs twice: all merges are learned.";
      const [pair, count] = pairs[0], ties = pairs.filter((entry) => entry[1] === count).length;
      const reason =
        ties > 1 ? `${ties} pairs occur ${count} times; the first of them in string order` : `it occurs ${count} times`;
      return `Next merge, rank ${done}: ${pair.replace(" ", " + ")} (${reason}).`;
    }

    learn();
  });
}
