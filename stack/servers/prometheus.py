"""A private Prometheus that runs with the configuration and the alert rules of docs/monitoring.

Contract: it scrapes the metrics of one Odoo and evaluates the rules often enough to watch; its data goes with its
folder.
"""
from pathlib import Path

from ..machine import REPO
from ..process import Program, free_port
from ..recipes import block, changed

RULES = REPO / "docs/monitoring/alerts.yml"
DASHBOARD = REPO / "docs/monitoring/grafana.json"
OFTEN = "global: {scrape_interval: 10s, evaluation_interval: 5s}\n"


def config(port):
    """The prometheus.yml that docs/monitoring.rst shows, for the metrics on this port."""
    return OFTEN + changed(block("prometheus-yml"), {
        "/etc/prometheus/alerts.yml": str(RULES), "127.0.0.1:9187": f"127.0.0.1:{port}"}) + "\n"


class Prometheus(Program):
    host = "127.0.0.1"

    def __init__(self, command, folder, port):
        """`command`: the program, and where its web pages are. `port`: that of Odoo's metrics."""
        self.command, self.folder, self.metrics_port = command, Path(folder), port
        self.port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        super().__init__("Prometheus", self.folder / "prometheus.log")

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def start(self):
        path = self.folder / "prometheus.yml"
        path.write_text(config(self.metrics_port))
        self.launch([*self.command, f"--config.file={path}", f"--storage.tsdb.path={self.folder}/data",
                     f"--web.listen-address={self.host}:{self.port}"], {}, self.folder)
        return self
