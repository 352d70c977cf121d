"""The HTTP API: routes, request headers, responses, and the OpenAPI document."""
