"""Cron looks at all databases every two seconds, and not every minute: what happens then is seen sooner."""
import odoo.service.server

odoo.service.server.SLEEP_INTERVAL = 2
