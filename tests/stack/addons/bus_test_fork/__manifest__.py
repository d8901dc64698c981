{
    "name": "A test: a job forks a child",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "post_load": "post_load",
    "installable": True,
}
