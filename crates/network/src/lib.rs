//! Pod network, service proxy and DNS of a node.
