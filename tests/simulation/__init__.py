"""The addon's own code in virtual time, in a model of the world, with faults that follow from a seed.

    kernel     virtual time, threads                     life       one life: the world, Odoo's half, senders
    standins   what the addon sees of the outside        faults     what goes wrong, and when
    network    connections and names      } the          holds      what must hold
    postgres   sessions, rows, NOTIFYs    } model        story      what happened, in words
    pooler     PgBouncer                  } of the       mutations  the addon without one of its mechanisms
    clients    the bus and its browsers   } world        table      which lives miss it

Contract: one process, no sockets, no Odoo, no sleep; a seed gives the same history on every machine. The addon's files
are read as they are. `test_conformance` compares the model with the real servers; what else is here needs none. Imports
stack, no other room.
"""
