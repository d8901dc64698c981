"""Measures of Odoo's live bus: every way to run it behind a pooler, side by side, on one machine, in one run.

    ./dev bench       what it costs and how it grows: `sending`, `latency`, `foreign`, `audience`, `connections`,
                      `listeners`, `databases`, `startup`, put together by `__main__`
    ./dev bad-day     what a fault does to each setup; `fault_plot` draws one of them
    ./dev failover    the primary moves, with Patroni
    ./dev matrix      other poolers and other versions of PostgreSQL
    ./dev soak        random faults under load (`traffic`); nothing may be lost

Contract: a part of ./dev bench is one file with `TITLE`, `NOTE` (what the reader has to know), `SHOWN` and `PLOTS`
(what of it the page shows) and `run(lab, quick)`, which yields `Result`s. `setups` starts who takes part, `clients`
receive, `report` writes the documents. Imports stack; imported by tests. Only `listening` uses inner modules of the
addon.
"""
