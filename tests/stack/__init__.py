"""The addon's promises on the real thing: PostgreSQL, a pooler and Odoo run, faults happen, clients receive.

Contract: a test sees what a user or an administrator can see (clients, log, health, metrics, PostgreSQL's views). Waits
for events, with a deadline that only catches a hang. Imports stack and bench, no other room.
"""
