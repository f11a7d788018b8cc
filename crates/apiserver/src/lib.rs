//! The API server: HTTP, authentication, authorisation, admission, registry, watch cache, discovery, OpenAPI.
