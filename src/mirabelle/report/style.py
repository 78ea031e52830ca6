"""The stylesheet of the page. Colours are Okabe and Ito's, which people with any common colour blindness tell apart, lightened for the dark."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --paper:#fbfaf7; --card:#ffffff; --ink:#1d1b22; --soft:#5d5a66; --line:#dedbe3; --track:#efedf2; --accent:#5b3a8c;
  --good:#00694e; --good-tint:#e3f3ed; --bad:#a63c00; --bad-tint:#fdeadf;
  --c0:#0072b2; --c1:#c65200; --c2:#008a63; --c3:#b0578f; --c4:#9a6b00; --c5:#4a4a4a; }
@media (prefers-color-scheme: dark) { :root { --paper:#16151a; --card:#201f26; --ink:#ecebf0; --soft:#aaa7b4; --line:#3a3843; --track:#2d2b34;
  --accent:#c3a6f0; --good:#4fd1a5; --good-tint:#16352b; --bad:#ff9d66; --bad-tint:#45240f;
  --c0:#56b4e9; --c1:#ff8a3d; --c2:#2fc997; --c3:#e39ac6; --c4:#f0c04a; --c5:#bdbdbd; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 16px; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: 1.05rem; font-weight: 500; color: var(--soft); margin: 24px 0 8px; }
h1 b { color: var(--accent); }
h2 { font-size: 1.3rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p { margin: 6px 0 12px; }
section { margin: 40px 0 0; }
.note { color: var(--soft); font-size: .875rem; max-width: 46rem; }
.headline { font-size: clamp(1.35rem, 4.6vw, 2rem); line-height: 1.25; font-weight: 650; margin: 0 0 20px; letter-spacing: -.01em;
  text-wrap: balance; }
.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 12px; margin: 0 0 16px; }
.big div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.big b { display: block; font-size: 2.4rem; line-height: 1.1; letter-spacing: -.02em; color: var(--accent); font-variant-numeric: tabular-nums; }
.big span { display: block; font-weight: 600; }
.big small { color: var(--soft); }
.limits { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.limits li { padding: 10px 14px; border-radius: 10px; border: 1px solid var(--line); border-left: 6px solid var(--line); background: var(--card);
  overflow-wrap: anywhere; }
.limits .met { border-left-color: var(--good); background: var(--good-tint); }
.limits .missed { border: 2px solid var(--bad); border-left-width: 6px; background: var(--bad-tint); font-weight: 600; grid-column: 1 / -1;
  order: -1; }
.limits .met b { color: var(--good); } .limits .missed b { color: var(--bad); text-transform: uppercase; letter-spacing: .03em; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin: 0 0 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); white-space: normal; min-width: 8.5rem;
  max-width: 16rem;
  overflow-wrap: anywhere; font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
thead th, thead th:first-child { color: var(--soft); font-weight: 500; }
td.words, th.words { text-align: left; } td.words { white-space: normal; min-width: 12rem; }
td small { display: block; color: var(--soft); font-weight: 400; }
.departure { border-left: 6px solid var(--bad); padding: 2px 12px; background: var(--bad-tint); overflow-wrap: anywhere; }
tr.best td { background: color-mix(in srgb, var(--accent) 9%, var(--card)); }
.pair { display: grid; gap: 0 40px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); align-items: start; }
.pair > * { min-width: 0; max-width: 640px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 6px 0; font-size: .8125rem; color: var(--soft); }
.legend svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 6px; }
svg { overflow: visible; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg.plot { display: block; width: 100%; max-width: 500px; height: auto; }
svg.bars { display: block; }
svg text.row { font: 11px ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; fill: var(--ink); }
svg text.value { fill: var(--ink); }
svg text.axis { font-weight: 600; }
svg text.name { fill: currentColor; font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); } .s3 { color: var(--c3); } .s4 { color: var(--c4); }
  .s5 { color: var(--c5); }
.mark { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
.trail { fill: none; stroke: currentColor; stroke-width: 1.2; stroke-dasharray: 2 4; opacity: .7; }
.curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.dash1 .curve { stroke-dasharray: 7 3; } .dash2 .curve { stroke-dasharray: 2 3; }
.whisker { fill: none; stroke: currentColor; stroke-width: 1.5; }
.grid { stroke: var(--line); } .tick { stroke: var(--soft); fill: none; }
.track { fill: var(--track); } .bar { fill: currentColor; } .bar.before { color: var(--soft); opacity: .55; }
.kept { fill: var(--c0); } .clipped { fill: var(--c1); } .outside { fill: var(--c1); opacity: .16; }
.threshold { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 2; fill: none; }
.ghost { fill: var(--soft); opacity: .28; } .column { stroke: var(--c0); stroke-width: 2.2; fill: none; } .column.clipped { stroke: var(--c1); stroke-width: 3.4; }
.tensors { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 150px), 1fr)); gap: 14px 20px; margin: 10px 0 16px; }
.tensors figure { margin: 0; min-width: 0; } .tensors svg { display: block; width: 100%; height: auto; }
.tensors figcaption { font-size: .75rem; line-height: 1.35; color: var(--soft); overflow-wrap: anywhere; }
.tensors figcaption b { display: block; color: var(--ink); font-family: ui-monospace, Menlo, Consolas, "Liberation Mono", monospace;
  font-weight: 600; }
details { border-top: 1px solid var(--line); padding: 8px 0; } details + details { margin: 0; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; } summary small { color: var(--soft); font-weight: 400; }
dl { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: 4px 18px; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; font-size: .8125rem;
  line-height: 1.45; }
footer { color: var(--soft); font-size: .8125rem; margin: 40px auto 24px; }
@media (max-width: 480px) { .tensors { grid-template-columns: 1fr 1fr; gap: 14px; } table { font-size: .8125rem; }
  td:first-child { min-width: 9.75rem; } th, td { padding: 7px 9px; } section { margin-top: 32px; } }
@media print { :root { color-scheme: light; --paper:#fff; --card:#fff; } body { font-size: 11pt; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
  .wide, pre { overflow: visible; } pre { white-space: pre-wrap; } table { font-size: 8pt; } th, td { padding: 4px 5px; white-space: normal; }
  figure, tr, .big div, .limits li, svg.plot { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
