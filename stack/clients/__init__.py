"""Who uses a running stack, and what can be seen of it from outside: clients, senders, browsers, listeners, the log.

Contract: a client knows a server by its address and its database, and reports what it received and when. Imports
servers, download and what stands in stack/ itself. Imported by bench, tests and the commands in stack/.
"""
