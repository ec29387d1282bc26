//! The caller of a request, as the gate identified it, and in the terms of the switch.
//!
//! Left out: how the gate identifies a caller (`access`).

use tonic::Request;

use crate::{
    rpc::access::{Caller, Role},
    switch::Principal,
};

/// Returns the caller that the gate identified.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    let known = request.extensions().get::<Caller>().cloned();
    // Every call comes through the gate. If one did not, it would have the lowest role.
    known.unwrap_or_else(|| Caller { name: "nobody".into(), role: Role::Read, proven: false })
}

/// Returns the caller in the switch's terms.
pub(super) fn principal<T>(request: &Request<T>) -> Principal {
    caller(request).into()
}

impl From<Caller> for Principal {
    fn from(caller: Caller) -> Self {
        let Caller { name, role, proven } = caller;
        Self { name, proven, operator: proven && role == Role::Admin }
    }
}
