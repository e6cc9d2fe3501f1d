"""Bodies drawn from the server's own OpenAPI description, and wrong ones: none gets status 500."""

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from server_calls import Served


def test_no_body_is_too_much(server: Served) -> None:
    description = server.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=server.url)
    seen = set()
    for operation in schema.get_all_operations():
        modes = list(schemathesis.GenerationMode) if operation.ok().body else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:

            @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=15, database=None, suppress_health_check=list(hypothesis.HealthCheck), deadline=None
            )
            def drawn(case: schemathesis.Case) -> None:
                response = case.call(timeout=60)
                case.validate_response(response, checks=[not_a_server_error])
                seen.add(response.status_code)

            drawn()
    assert {200, 400} <= seen <= {200, 400, 404, 405, 413, 422}
    assert server.http.get("/health").status_code == 200
