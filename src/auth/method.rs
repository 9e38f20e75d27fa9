//! What a caller may call.

use serde::Deserialize;

/// A method of the push side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Method {
    Push,
    Batch,
    Stream,
    Broadcast,
    Drop,
}

impl Method {
    /// The default for a key: everything.
    pub(super) const ALL: [Self; 5] = [Self::Push, Self::Batch, Self::Stream, Self::Broadcast, Self::Drop];

    /// The method with this name in settings and claims.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "push" => Self::Push,
            "batch" => Self::Batch,
            "stream" => Self::Stream,
            "broadcast" => Self::Broadcast,
            "drop" => Self::Drop,
            _ => return None,
        })
    }

    /// The method with this name in the gRPC service.
    pub(crate) fn of_grpc(name: &str) -> Option<Self> {
        Some(match name {
            "Push" => Self::Push,
            "PushBatch" => Self::Batch,
            "PushStream" => Self::Stream,
            "Broadcast" => Self::Broadcast,
            "Drop" => Self::Drop,
            _ => return None,
        })
    }
}

/// What a caller may do with the `AdminService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminAccess {
    /// To look.
    Read,
    /// To look, and to change something.
    Write,
}

impl AdminAccess {
    /// What the method with this name in the `AdminService` needs. `None` for one that the service does not have.
    pub(crate) fn needed_for(method: &str) -> Option<Self> {
        match method {
            "Drain" | "Undrain" | "Revoke" => Some(Self::Write),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of a proto file's methods.
    fn methods(proto: &str) -> impl Iterator<Item = &str> {
        proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
    }

    #[test]
    fn each_method_of_the_admin_service_needs_access_so_that_none_goes_past_the_check() {
        let names: Vec<_> = methods(include_str!("../../proto/pushgate/v1/admin.proto")).collect();
        assert!(names.len() >= 3, "{names:?}");
        let open: Vec<_> = names.iter().filter(|name| AdminAccess::needed_for(name).is_none()).collect();
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn each_method_of_the_service_is_known_so_that_none_goes_past_the_check() {
        let proto = include_str!("../../proto/pushgate/v1/push.proto");
        let names: Vec<_> = methods(proto).map(|name| (name, Method::of_grpc(name))).collect();
        assert_eq!(names.len(), Method::ALL.len(), "{names:?}");
        assert!(names.iter().all(|(_, method)| method.is_some()), "{names:?}");
    }
}
