{
    "name": "A test: an Odoo without psycopg2",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "installable": True,
}
