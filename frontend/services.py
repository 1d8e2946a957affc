"""What the endpoints of one frontend process share."""

from collections.abc import Callable
from dataclasses import dataclass

from frontend.admission import Admission
from frontend.cache import AnswerCache
from frontend.catalog import Catalog
from frontend.jobs import Jobs
from frontend.live import Live
from frontend.observe import Observer
from frontend.overview import Lookout
from frontend.server import ServerSettings
from frontend.statistics import Statistics
from shared.measuring import Measures
from shared.settings import FrontendSettings
from shared.tracing import Tracer


@dataclass(frozen=True)
class Services:
    """`readiness`: what keeps this process from serving, as short sentences; empty when it is ready."""

    settings: FrontendSettings
    server: ServerSettings
    admission: Admission
    catalog: Catalog
    jobs: Jobs
    cache: AnswerCache
    readiness: Callable[[], list[str]]
    statistics: Statistics
    lookout: Lookout
    live: Live
    measures: Measures
    observer: Observer
    tracer: Tracer
    version: str
