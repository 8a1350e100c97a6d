"""The field's results, one module a paper: theory over measurement, and which of the paper's claims hold."""

from dynamics.runs.durable.modules import refuse_unknown

refuse_unknown(__name__)
