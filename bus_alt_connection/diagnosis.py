# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Why NOTIFYs do not arrive on a connection that is there. The listener and the doctor both ask.

Why there is no connection at all is ``trouble``'s to explain.
"""

from collections import namedtuple

# cause: its name, for machines; text: what is; remedy: what to do, without addresses
Diagnosis = namedtuple("Diagnosis", "cause text remedy")


def undelivered(place, listening, notifying, pooler, seconds):
    """Which misconfiguration keeps the NOTIFYs from a connection that LISTENs.

    :param str place: where it LISTENs, for people
    :param tuple listening: (when the server started, database) where it LISTENs
    :param tuple notifying: the same of where NOTIFYs go
    :param bool pooler: whether it LISTENs through a pooler
    :param float seconds: how long was waited
    :return: Diagnosis
    """
    if listening[0] != notifying[0]:
        return Diagnosis(
            "other server",
            "it LISTENs on %s, which is another server than the one that NOTIFYs reach" % place,
            "Set imdispatcher_db_host and imdispatcher_db_port to the server behind Odoo's own"
            " db_host",
        )
    if listening[1] != notifying[1]:
        return Diagnosis(
            "other database",
            'it LISTENs in database "%s" (%s), but NOTIFYs go to "%s"'
            % (listening[1], place, notifying[1]),
            "Set imdispatcher_db_name = %s" % notifying[1],
        )
    if pooler:
        return Diagnosis(
            "pooler",
            "%s is a pooler that shares its connections, where a LISTEN is lost" % place,
            "Set imdispatcher_db_host and imdispatcher_db_port to PostgreSQL itself",
        )
    return Diagnosis(
        "undelivered",
        "a NOTIFY through Odoo's own db_host did not arrive on %s within %g s, for no reason that"
        " can be seen" % (place, seconds),
        "Is the server overloaded?",
    )
