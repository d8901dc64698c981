"""Measures of Odoo's live bus: every way to run it behind a pooler, side by side, on one machine, in one run.

`./dev bench` asks what it costs and how it grows, `./dev bad-day` what a fault does, `./dev soak` whether anything is
lost under random faults. `setups` starts who takes part, `report` writes the documents. A kind of measurement is one
file with `TITLE`, `NOTE` (what the reader has to know), `PLOTS`, and `run(lab, quick)` which yields `Result`s; one with
a page of its own has `page(folder, figures)`, which writes it. `fleet` is put together from `pure`, `foreign`, `herd`
and `tenants`, and `capacity` writes its page.
"""
