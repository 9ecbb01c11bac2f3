//! The whole table of SEMANTICS.md's section E: sources, destinations, policies, endpoints.
