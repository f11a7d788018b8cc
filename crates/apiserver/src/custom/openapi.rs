//! What of a definition is published in OpenAPI documents.
