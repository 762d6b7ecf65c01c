"""How the page of a rollout's record looks: on light and dark screens, and on paper."""

from __future__ import annotations

from rollout.records.plots import COLOURS

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #59636e; --line: #d8dee4; --box: #f6f8fa;
  --pass: #1a7f37; --fail: #cf222e; --inconclusive: #9a6700; --on: #fff;
  --c0: #5b6b7c; --c1: #0969da; --c2: #bc4c00; --c3: #1a7f5a; --c4: #8250df; --c5: #b88600; --c6: #bf3989;
  --c7: #3f4d9e }
@media screen and (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --soft: #9198a1;
  --line: #30363d;
  --box: #161b22; --pass: #3fb950; --fail: #f85149; --inconclusive: #d29922; --on: #0d1117;
  --c0: #9aa7b4; --c1: #58a6ff; --c2: #f0883e; --c3: #56d3a0; --c4: #bc8cff; --c5: #e3b341; --c6: #f778ba;
  --c7: #8f9df0 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
.under { color: var(--soft); margin: .1rem 0 1rem }
.badge { display: inline-block; padding: 0 .6em; border-radius: 1em; font-size: .85em; font-weight: 600;
  color: var(--on); background: var(--soft); white-space: nowrap }
.badge.pass { background: var(--pass) } .badge.fail { background: var(--fail) }
.badge.inconclusive { background: var(--inconclusive) }
.reason { border-left: 4px solid var(--soft); background: var(--box); padding: .5rem .9rem; margin: 1rem 0;
  white-space: pre-wrap }
.reason.fail { border-color: var(--fail) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 1rem 0 }
dt { color: var(--soft) } dd { margin: 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93em }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
td, th { white-space: nowrap; overflow-wrap: normal } th { color: var(--soft); font-weight: 600 }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 11rem } #verdicts td.text { min-width: 18rem }
td.number, th.number { text-align: right }
td .badge { margin: 0 .3em .1em 0 }
figure { margin: 0 0 1.6rem } figcaption { display: flex; flex-wrap: wrap; gap: 0 1.2rem; align-items: baseline }
figcaption h2 { margin: .6rem 0 .1rem } .note { color: var(--soft); font-size: .87em }
.key { white-space: nowrap; font-size: .87em } .key::before { content: ""; display: inline-block; width: 1.1em;
  height: .7em; border-radius: 2px; margin-right: .4em; background: var(--key) }
details { margin: 1.2rem 0 } summary { cursor: pointer; font-weight: 600 }
pre { background: var(--box); padding: .8rem; font-size: .82em; overflow-x: auto; white-space: pre-wrap }
svg { display: block; width: 100%; min-width: 38rem; height: auto; font: 11.5px system-ui, sans-serif;
  font-variant-numeric: tabular-nums }
text { fill: var(--soft) } .value { text-anchor: end } .limit-label { fill: var(--fail) }
.row, .limit-label { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round }
.inside { text-anchor: middle; fill: var(--on); font-weight: 600 } .row { fill: var(--text) }
.grid { stroke: var(--line); stroke-width: 1 } .axis { stroke: var(--soft); stroke-width: 1 }
.limit { stroke: var(--fail); stroke-width: 1; stroke-dasharray: 5 4 }
.share { stroke: var(--page); stroke-width: .5; fill: var(--key); opacity: .88 }
.band { fill: var(--key); opacity: .16 }
.curve { fill: none; stroke: var(--key); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.dots { fill: none; stroke: var(--key); stroke-width: 3.2; stroke-linecap: round; opacity: .45 }
.mark line { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3 }
.mark.rollback line { stroke: var(--fail); stroke-width: 2; stroke-dasharray: none }
.mark.end line { stroke: var(--text); stroke-dasharray: none }
.mark-label.rollback { fill: var(--fail); font-weight: 600 } .mark-label.end { fill: var(--text) }
.span { fill: var(--soft); opacity: .16 } .span.unseen { fill: var(--inconclusive) }
.tip { fill: transparent; stroke: none } .tip:hover { fill: var(--soft); opacity: .14 }
.word.pass { fill: var(--pass) } .word.fail { fill: var(--fail) } .word.inconclusive { fill: var(--inconclusive);
  opacity: .55 }
@media print { body { margin: 0; max-width: none }
  figure, tr { break-inside: avoid } * { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
""" + "".join(f".c{number} {{ --key: var(--c{number}) }}\n" for number in range(COLOURS))
"""The page's one style sheet."""
