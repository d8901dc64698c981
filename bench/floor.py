"""The floor: LISTEN with psycopg2, and write down when each notification came. Arguments: host and port of PostgreSQL.

Run by itself, in a process of its own. Knows nothing of Odoo, fetches nothing.
"""
import select
import sys
import time

import psycopg2

connection = psycopg2.connect(host=sys.argv[1], port=sys.argv[2], user="odoo", dbname="postgres")
connection.autocommit = True
connection.cursor().execute("LISTEN imbus")
print("listening", flush=True)
while True:
    select.select([connection], [], [])
    connection.poll()
    at = time.monotonic()
    sys.stdout.write("".join(f"{at} {notification.payload}\n" for notification in connection.notifies))
    sys.stdout.flush()
    connection.notifies.clear()
