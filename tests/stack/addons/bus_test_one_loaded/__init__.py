"""Keeps one database loaded at a time, as a server does with more databases than its memory allows."""
from odoo.tools import config

config["registry_lru_size"] = 1
