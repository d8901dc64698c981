{
    "name": "A test: the shape of Odoo 20 on the tree of 19",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "installable": True,
}
