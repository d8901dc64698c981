"""Tests, in rooms by what they prove; `./dev test --list` prints what each file promises.

    fast        what needs no server                     simulation  the addon's own code in virtual time
    stack       the addon's promises on real servers     workshop    what the tests, the documents and ./dev promise
    inside      in a real Odoo, by its own Python: started by stack/test_inside.py, imports nothing of the others

Contract: `conftest`, `running` and `documents` are for all rooms. No room imports from another one, but for
`inside/settings_values`, which `fast` reads as well.
"""
