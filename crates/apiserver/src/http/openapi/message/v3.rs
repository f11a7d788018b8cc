//! The messages of version 3: `openapi.v3.Document` of gnostic.

use super::{Form, Shape};

pub(super) static DOCUMENT: Form = Form {
    keys: &[
        ("openapi", 1, Shape::Text),
        ("info", 2, Shape::Object(&INFO)),
        ("paths", 4, Shape::Named(&PATH)),
        ("components", 5, Shape::Object(&COMPONENTS)),
    ],
    others: 9,
};

static INFO: Form = Form {
    keys: &[("title", 1, Shape::Text), ("description", 2, Shape::Text), ("version", 6, Shape::Text)],
    others: 7,
};

static COMPONENTS: Form = Form {
    keys: &[
        ("schemas", 1, Shape::NamedEither(1, &SCHEMA)),
        ("securitySchemes", 7, Shape::NamedEither(1, &SCHEME)),
    ],
    others: 10,
};

static SCHEME: Form = Form {
    keys: &[
        ("type", 1, Shape::Text),
        ("description", 2, Shape::Text),
        ("name", 3, Shape::Text),
        ("in", 4, Shape::Text),
    ],
    others: 9,
};

static PATH: Form = Form {
    keys: &[
        ("get", 4, Shape::Object(&OPERATION)),
        ("put", 5, Shape::Object(&OPERATION)),
        ("post", 6, Shape::Object(&OPERATION)),
        ("delete", 7, Shape::Object(&OPERATION)),
        ("options", 8, Shape::Object(&OPERATION)),
        ("head", 9, Shape::Object(&OPERATION)),
        ("patch", 10, Shape::Object(&OPERATION)),
        ("parameters", 13, Shape::Eithers(&PARAMETER)),
    ],
    others: 14,
};

static OPERATION: Form = Form {
    keys: &[
        ("tags", 1, Shape::Texts),
        ("summary", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("operationId", 5, Shape::Text),
        ("parameters", 6, Shape::Eithers(&PARAMETER)),
        ("requestBody", 7, Shape::Either(&BODY)),
        ("responses", 8, Shape::NamedEither(2, &RESPONSE)),
        ("deprecated", 10, Shape::Bool),
    ],
    others: 13,
};

static PARAMETER: Form = Form {
    keys: &[
        ("name", 1, Shape::Text),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("required", 4, Shape::Bool),
        ("schema", 10, Shape::Either(&SCHEMA)),
    ],
    others: 14,
};

static BODY: Form = Form {
    keys: &[
        ("description", 1, Shape::Text),
        ("content", 2, Shape::Named(&MEDIA)),
        ("required", 3, Shape::Bool),
    ],
    others: 4,
};

static MEDIA: Form = Form { keys: &[("schema", 1, Shape::Either(&SCHEMA))], others: 5 };

static RESPONSE: Form =
    Form { keys: &[("description", 1, Shape::Text), ("content", 3, Shape::Named(&MEDIA))], others: 5 };

static DOCS: Form = Form { keys: &[("description", 1, Shape::Text), ("url", 2, Shape::Text)], others: 3 };

static SCHEMA: Form = Form {
    keys: &[
        ("nullable", 1, Shape::Bool),
        ("readOnly", 3, Shape::Bool),
        ("writeOnly", 4, Shape::Bool),
        ("externalDocs", 6, Shape::Object(&DOCS)),
        ("example", 7, Shape::Any),
        ("deprecated", 8, Shape::Bool),
        ("title", 9, Shape::Text),
        ("multipleOf", 10, Shape::Double),
        ("maximum", 11, Shape::Double),
        ("exclusiveMaximum", 12, Shape::Bool),
        ("minimum", 13, Shape::Double),
        ("exclusiveMinimum", 14, Shape::Bool),
        ("maxLength", 15, Shape::Int),
        ("minLength", 16, Shape::Int),
        ("pattern", 17, Shape::Text),
        ("maxItems", 18, Shape::Int),
        ("minItems", 19, Shape::Int),
        ("uniqueItems", 20, Shape::Bool),
        ("maxProperties", 21, Shape::Int),
        ("minProperties", 22, Shape::Int),
        ("required", 23, Shape::Texts),
        ("enum", 24, Shape::Anys),
        ("type", 25, Shape::Text),
        ("allOf", 26, Shape::Eithers(&SCHEMA)),
        ("oneOf", 27, Shape::Eithers(&SCHEMA)),
        ("anyOf", 28, Shape::Eithers(&SCHEMA)),
        ("not", 29, Shape::Object(&SCHEMA)),
        ("items", 30, Shape::InEither(&SCHEMA)),
        ("properties", 31, Shape::NamedEither(1, &SCHEMA)),
        ("additionalProperties", 32, Shape::InEither(&SCHEMA)),
        ("default", 33, Shape::Scalar),
        ("description", 34, Shape::Text),
        ("format", 35, Shape::Text),
    ],
    others: 36,
};
