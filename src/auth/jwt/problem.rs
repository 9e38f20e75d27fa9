//! What can be wrong with a JWT, in words that hold nothing of the token, so that they may be logged.

use jsonwebtoken::errors::{Error, ErrorKind};

use super::super::Token;

/// Why a JWT was refused. The text contains nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtProblem {
    /// Longer than [`Token::BYTES_MAX`].
    #[error("it has more than {} bytes, which no client can bind with", Token::BYTES_MAX)]
    TooLong,
    /// Not a JWT.
    #[error("it is not a JWT, which is three texts in base64url, separated by dots")]
    NotAJwt,
    /// An encrypted JWT.
    #[error(
        "it is an encrypted JWT (JWE), which only its issuer can read; ask the issuer for a signed one (some issuers give \
         these when they are asked for no audience)"
    )]
    Encrypted,
    /// `alg` is `none`.
    #[error("it is not signed: its alg is none")]
    Unsigned,
    /// An algorithm that is not supported at all.
    #[error("it is signed with an algorithm that is not supported")]
    UnsupportedAlgorithm,
    /// An algorithm that `jwt_algorithms` does not have.
    #[error("it is signed with {0}, which jwt_algorithms does not allow")]
    AlgorithmNotAllowed(&'static str),
    /// No key has the token's `kid`.
    #[error("no key has its kid: it was signed with another key, or the keys are out of date")]
    UnknownKid,
    /// There are no keys, or not the latest.
    #[error("it cannot be checked now, because the keys could not be fetched from jwt_jwks_url")]
    KeysUnavailable,
    /// The keys that have the token's `kid` are for other algorithms.
    #[error("none of the keys is for its algorithm, {0}")]
    NoKeyForAlgorithm(&'static str),
    /// The signature is wrong.
    #[error("its signature is wrong: it was signed with another key, or changed since")]
    Signature,
    /// A claim is missing that must be there.
    #[error("it has no {0}, or one of the wrong type")]
    MissingClaim(&'static str),
    /// A claim has a wrong type.
    #[error("its {0} has the wrong type")]
    MalformedClaim(&'static str),
    /// The token expired.
    #[error("it has expired: its exp is past")]
    Expired,
    /// `exp` is far beyond any sensible time.
    #[error("its exp is not a time in seconds since 1970; is it in milliseconds?")]
    ExpNotSeconds,
    /// The token is not valid yet.
    #[error("it is not valid yet: its nbf is in the future")]
    NotYetValid,
    /// `iss` is not in `jwt_issuer`.
    #[error("its issuer (iss) is not one of jwt_issuer")]
    Issuer,
    /// `aud` is not in `jwt_audience`.
    #[error("its audience (aud) is not one of jwt_audience")]
    Audience,
    /// The token is meant for an audience, and `jwt_audience` is not set.
    #[error("it is meant for an audience (aud), and jwt_audience is not set")]
    AudienceNotSet,
    /// The claim of `jwt_user_claim` is missing.
    #[error("it has no claim of the name that jwt_user_claim says")]
    NoUser,
    /// The claim of `jwt_user_claim` is no user id.
    #[error("the claim that jwt_user_claim names is not a user id: a text of 1 to 4096 bytes, or a whole number")]
    NotAUser,
    /// The claim of `jwt_events_claim` is not a list of patterns.
    #[error(
        "the claim that jwt_events_claim names is not a list of patterns, or a text of patterns separated by spaces"
    )]
    NotEvents,
    /// The claim of `push_jwt_users_claim` is not a list of patterns.
    #[error(
        "the claim that jwt_users_claim names is not a list of patterns, or a text of patterns separated by spaces"
    )]
    NotUsers,
    /// The claim of `push_jwt_methods_claim` is not a list of names.
    #[error(
        "the claim that jwt_methods_claim names is not a list of methods, or a text of methods separated by spaces"
    )]
    NotMethods,
}

impl JwtProblem {
    /// The text for the token of a caller, which other settings are for.
    pub(in super::super) fn of_caller(self) -> String {
        let text = self.to_string().replace("jwt_user_claim", "jwt_name_claim").replace("a user id", "a name");
        text.replace("jwt_", "push_jwt_")
    }
}

impl From<Error> for JwtProblem {
    /// What the library found, where the caller knows nothing better.
    fn from(error: Error) -> Self {
        let claim =
            |name: &str| ["exp", "nbf", "iss", "aud"].into_iter().find(|known| *known == name).unwrap_or("claim");
        match error.kind() {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::MissingRequiredClaim(name) => Self::MissingClaim(claim(name)),
            ErrorKind::InvalidClaimFormat(name) => Self::MalformedClaim(claim(name)),
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYetValid,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Self::UnsupportedAlgorithm,
            _ => Self::NotAJwt,
        }
    }
}
