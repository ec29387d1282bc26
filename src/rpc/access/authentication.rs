//! Authentication: roles, the access file, and the identity of a caller.
//!
//! The access file has one credential in each line: a name, a role, and a proof that the caller has this name.
//!
//! ```text
//! # name     role      proof
//! dashboard  read      token:9f2c…
//! node       protocol  sha256:5e88…
//! node       protocol  cert:spiffe://example/node
//! ops        admin     uid:1001
//! ```
//!
//! `token:` is a bearer token (RFC 6750). `sha256:` is the hash of a token in hex, so that the file holds no secret.
//! `cert:` is a DNS or URI name in a client's certificate (mTLS). `uid:` is the user at the other end of the Unix
//! socket. A name has one role. It may have several proofs, so that a token can be replaced without a pause.
//!
//! The hash of a received token is compared with every token of the file, each in constant time. So the time that a
//! wrong token takes says nothing about the right ones.
//!
//! Left out: reading the file again when it changes (`credentials`), and which call needs which role (`methods`).

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use data_encoding::HEXLOWER_PERMISSIVE;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::rpc::{proto::ErrorReason, server::connection_slots::Origin, translate::status::ErrorStatus};

/// The most credentials of one file: every call with a token compares it with all of them.
const MAX_CREDENTIALS: usize = 256;

/// The most characters of a caller's name.
const MAX_NAME: usize = 64;

/// The fewest and the most characters of a token. A network is too slow to guess 16 random characters, but fast enough
/// to guess a word.
const MIN_TOKEN: usize = 16;
const MAX_TOKEN: usize = 512;

/// The rights of a caller. Each role includes the roles before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May read the state: peers, nodes, registrations, this node.
    Read,
    /// May act as an application: register protocols, exchange messages, send requests to other nodes.
    Protocol,
    /// May act as the operator: change lists, bans, settings and the node record, and stop the process.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Protocol => "protocol",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "read" => Ok(Self::Read),
            "protocol" => Ok(Self::Protocol),
            "admin" => Ok(Self::Admin),
            _ => Err(()),
        }
    }
}

/// The caller of one call, and its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name under which registrations are kept: `loopback`, `ip:…`, `uid:…`, or `caller:` and a name of the file.
    pub name: Arc<str>,
    /// The caller's role.
    pub role: Role,
    /// Whether the caller has proven its name. Without a proof it may not stop the process or take over registrations.
    pub proven: bool,
}

/// An error in the access file. It never contains the text of a proof, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct AccessError {
    /// The line, counted from 1.
    pub line: usize,
    /// The problem, and a correct value.
    pub problem: String,
}

/// How a caller proves its name.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Proof {
    /// The SHA-256 of a token.
    Token([u8; 32]),
    Certificate(String),
    Uid(u32),
}

struct Credential {
    proof: Proof,
    caller: Caller,
}

/// The access file, parsed.
pub struct Access(Vec<Credential>);

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({} credentials)", self.0.len())
    }
}

impl Access {
    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let mut credentials = Vec::new();
        let mut proofs: HashMap<Proof, usize> = HashMap::new();
        let mut roles: HashMap<&str, (Role, usize)> = HashMap::new();
        for (index, content) in text.lines().enumerate() {
            let line = index + 1;
            let wrong = |problem: String| AccessError { line, problem };
            let mut words = content.split_whitespace().take_while(|word| !word.starts_with('#')).peekable();
            if words.peek().is_none() {
                continue;
            }
            let (Some(name), Some(role), Some(proof), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                let problem = "must be a name, a role and a proof; write for example: dashboard read token:…";
                return Err(wrong(problem.to_owned()));
            };
            if !is_name(name) {
                // The name may be a token in the wrong place, so the error does not repeat it.
                let problem =
                    format!("the name must be 1 to {MAX_NAME} letters, digits, `-`, `_`, `.` or `@`");
                return Err(wrong(problem));
            }
            let role: Role =
                role.parse().map_err(|()| wrong("the role must be read, protocol or admin".to_owned()))?;
            let proof = parse_proof(proof).map_err(wrong)?;
            if let Some((other, at)) = roles.insert(name, (role, line))
                && other != role
            {
                return Err(wrong(format!("{name} has the role {other} in line {at}; a name has one role")));
            }
            if let Some(at) = proofs.insert(proof.clone(), line) {
                return Err(wrong(format!("the same proof is already in line {at}")));
            }
            let caller = Caller { name: format!("caller:{name}").into(), role, proven: true };
            credentials.push(Credential { proof, caller });
            if credentials.len() > MAX_CREDENTIALS {
                return Err(wrong(format!("the file has more than {MAX_CREDENTIALS} credentials")));
            }
        }
        Ok(Self(credentials))
    }

    fn token(&self, token: &str) -> Option<&Caller> {
        let hash = hash(token);
        let mut found = None;
        for credential in &self.0 {
            if let Proof::Token(have) = &credential.proof
                && bool::from(have.ct_eq(&hash))
            {
                found = Some(&credential.caller);
            }
        }
        found
    }

    fn proven(&self, proof: &Proof) -> Option<&Caller> {
        self.0.iter().find(|credential| credential.proof == *proof).map(|credential| &credential.caller)
    }
}

/// Returns the caller of a call, or the refusal of its credential. `origin` is the other end of the connection, `names`
/// are the names in its certificate, and `authorization` is the header of the call.
///
/// Without an access file (`None`) the transport alone decides: the Unix socket knows its user, and over TCP every
/// client that can connect may call. With an access file, a call over TCP needs a credential. A wrong credential is
/// refused everywhere, because its sender relies on it.
pub fn authenticate(
    access: Option<&Access>,
    origin: &Origin,
    names: &[String],
    authorization: Option<&[u8]>,
) -> Result<Caller, ErrorStatus> {
    if let Some(value) = authorization {
        let token = bearer(value)
            .ok_or_else(|| unauthenticated("the authorization must be a bearer token: \"Bearer TOKEN\""))?;
        let access = access.ok_or_else(|| {
            unauthenticated(
                "this sidecar knows no tokens, as it has no access file (--grpc-access); send no authorization header",
            )
        })?;
        return access.token(token).cloned().ok_or_else(|| unauthenticated("the bearer token is not known"));
    }
    let certified = || names.iter().find_map(|name| access?.proven(&Proof::Certificate(name.clone())));
    if let Some(caller) = certified() {
        return Ok(caller.clone());
    }
    let own = |role, proven| Caller { name: origin.name().into(), role, proven };
    match (origin, access) {
        (Origin::Uid(uid), access) => {
            let named = access.and_then(|access| access.proven(&Proof::Uid(*uid)));
            // The same user and root can read our key and our memory anyway, so they get the highest role.
            let same = *uid == 0 || *uid == rustix::process::geteuid().as_raw();
            let role = if same { Role::Admin } else { Role::Protocol };
            Ok(named.cloned().unwrap_or_else(|| own(role, true)))
        }
        (Origin::Loopback | Origin::Remote(_), None) => Ok(own(Role::Admin, false)),
        (Origin::Loopback | Origin::Remote(_), Some(_)) if names.is_empty() => {
            Err(unauthenticated("this call needs a bearer token; send \"authorization: Bearer TOKEN\""))
        }
        (Origin::Loopback | Origin::Remote(_), Some(_)) => {
            let names = names.join(", ");
            Err(unauthenticated(&format!("the access file names none of this certificate's names: {names}")))
        }
    }
}

fn unauthenticated(message: &str) -> ErrorStatus {
    ErrorStatus::new(ErrorReason::NotAuthorized, message)
}

/// Returns the token of an `authorization` header. The scheme may be in any case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain)
}

fn parse_proof(text: &str) -> Result<Proof, String> {
    const KINDS: &str = "the proof must be token:…, sha256:…, cert:… or uid:…";
    let (kind, value) = text.split_once(':').ok_or(KINDS)?;
    match kind {
        "token" => {
            // The characters of a bearer token: RFC 6750, 2.1.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            if !(MIN_TOKEN..=MAX_TOKEN).contains(&value.len()) || !value.bytes().all(plain) {
                return Err(format!(
                    "a token has {MIN_TOKEN} to {MAX_TOKEN} letters, digits or -._~+/=; make one with: openssl \
                     rand -hex 32"
                ));
            }
            Ok(Proof::Token(hash(value)))
        }
        "sha256" => {
            let bytes = HEXLOWER_PERMISSIVE.decode(value.as_bytes()).ok();
            let hash = bytes.and_then(|bytes| bytes.try_into().ok());
            hash.map(Proof::Token).ok_or_else(|| {
                "sha256: takes 64 hex digits; make them with: printf %s TOKEN | sha256sum".to_owned()
            })
        }
        "cert" if value.is_empty() => {
            Err("cert: takes a DNS or URI name of a client's certificate".to_owned())
        }
        "cert" => Ok(Proof::Certificate(value.to_owned())),
        "uid" => value
            .parse()
            .map(Proof::Uid)
            .map_err(|_| "uid: takes the number of a user, as in uid:1001".to_owned()),
        _ => Err(KINDS.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn access(text: &str) -> Access {
        Access::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_line_and_no_secret() {
        let hash = HEXLOWER_PERMISSIVE.encode(&hash(TOKEN));
        let cut = hash.get(1..).unwrap();
        for (text, expected) in [
            ("a read", "line 1: must be a name, a role and a proof"),
            (&format!("a read token:{TOKEN} b"), "line 1: must be a name, a role and a proof"),
            (&format!("\n# x\na reader token:{TOKEN}"), "line 3: the role must be read, protocol or admin"),
            (&format!("{} read token:{TOKEN}", "a".repeat(65)), "the name must be 1 to 64"),
            (&format!("a/b read token:{TOKEN}"), "the name must be"),
            ("a read token:0123456789abcde", "16 to 512"),
            (&format!("a read token:{}", "0".repeat(513)), "16 to 512"),
            ("a read token:0123456789abcd\u{e9}f", "16 to 512"),
            (&format!("a read {TOKEN}"), "the proof must be token:"),
            (&format!("a read secret:{TOKEN}"), "the proof must be token:"),
            (&format!("a read sha256:{cut}"), "64 hex digits"),
            ("a read cert:", "DNS or URI name"),
            ("a read uid:root", "the number of a user"),
            ("a read uid:4294967296", "the number of a user"),
            (
                &format!("a read token:{TOKEN}\nb read sha256:{hash}"),
                "line 2: the same proof is already in line 1",
            ),
            ("a read uid:1\na admin uid:2", "line 2: a has the role read in line 1"),
        ] {
            let error = Access::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {expected:?} not in {error:?}");
            assert!(!error.contains("0123456789") && !error.contains(cut), "{error}");
        }
        let many: String = (0..=MAX_CREDENTIALS).map(|uid| format!("a read uid:{uid}\n")).collect();
        assert!(Access::parse(&many).unwrap_err().to_string().contains("more than 256"));
        let whole = access(&format!("\r\n # c\n  a \t read token:{TOKEN} # d\r\na read uid:7 #\n"));
        assert_eq!(format!("{whole:?}"), "Access(2 credentials)");
    }

    #[test]
    fn callers_are_judged_by_what_they_show_and_where_they_come_from() {
        let us = rustix::process::geteuid().as_raw();
        let other = us + 1000;
        let file = access(&format!(
            "dash read token:{TOKEN}\nnode protocol sha256:{}\nnode protocol cert:spiffe://x/node\nops admin uid:{}\n\
             gw admin cert:gw.example",
            HEXLOWER_PERMISSIVE.encode(&hash("another-token-of-some-length")),
            other + 1,
        ));
        let remote = Origin::Remote([192, 0, 2, 1].into());
        let none: &[&str] = &[];
        let auth = |token: &str| Some(format!("Bearer {token}"));
        for (case, (with, origin, names, header, expected)) in [
            (false, Origin::Loopback, none, None, Ok(("loopback", Role::Admin, false))),
            (false, remote.clone(), none, None, Ok(("ip:192.0.2.1", Role::Admin, false))),
            (false, Origin::Uid(us), none, None, Ok((&*format!("uid:{us}"), Role::Admin, true))),
            (false, Origin::Uid(other), none, None, Ok((&*format!("uid:{other}"), Role::Protocol, true))),
            // Without an access file no token is right.
            (false, Origin::Loopback, none, auth(TOKEN), Err("knows no tokens")),
            (true, Origin::Loopback, none, None, Err("needs a bearer token")),
            (true, remote.clone(), none, None, Err("needs a bearer token")),
            (true, Origin::Loopback, none, auth(TOKEN), Ok(("caller:dash", Role::Read, true))),
            (
                true,
                remote.clone(),
                none,
                Some(format!("bEARER  {TOKEN} ")),
                Ok(("caller:dash", Role::Read, true)),
            ),
            (
                true,
                remote.clone(),
                none,
                auth("another-token-of-some-length"),
                Ok(("caller:node", Role::Protocol, true)),
            ),
            (true, remote.clone(), none, auth("0123456789abcdeg"), Err("is not known")),
            (true, remote.clone(), none, Some(format!("Basic {TOKEN}")), Err("must be a bearer token")),
            (true, remote.clone(), none, Some("Bearer ".to_owned()), Err("must be a bearer token")),
            (true, remote.clone(), none, Some(TOKEN.to_owned()), Err("must be a bearer token")),
            // A certificate counts by any of its names. A token has precedence over a certificate.
            (
                true,
                remote.clone(),
                &["x.example", "spiffe://x/node"],
                None,
                Ok(("caller:node", Role::Protocol, true)),
            ),
            (true, remote.clone(), &["gw.example"], auth(TOKEN), Ok(("caller:dash", Role::Read, true))),
            (
                true,
                remote.clone(),
                &["spiffe://x/nod"],
                None,
                Err("none of this certificate's names: spiffe://x/nod"),
            ),
            // A user of the Unix socket gets the role of its line; without a line, the role that it has without a file.
            (true, Origin::Uid(us), none, None, Ok((&*format!("uid:{us}"), Role::Admin, true))),
            (true, Origin::Uid(other), none, None, Ok((&*format!("uid:{other}"), Role::Protocol, true))),
            (true, Origin::Uid(other + 1), none, None, Ok(("caller:ops", Role::Admin, true))),
            (true, Origin::Uid(us), none, auth("wrong-token-of-some-length"), Err("is not known")),
        ]
        .into_iter()
        .enumerate()
        {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let outcome =
                authenticate(with.then_some(&file), &origin, &names, header.as_ref().map(String::as_bytes));
            match (expected, outcome) {
                (Ok((name, role, proven)), Ok(caller)) => {
                    assert_eq!(caller, Caller { name: name.into(), role, proven }, "{case}");
                }
                (Err(expected), Err(refusal)) => {
                    assert_eq!(refusal.code(), Code::Unauthenticated);
                    let said = refusal.message();
                    assert!(said.contains(expected), "{case}: {expected:?} not in {said:?}");
                    assert!(!said.contains("0123456789"), "{said}");
                }
                (expected, outcome) => panic!("{case}: {expected:?} and not {outcome:?}"),
            }
        }
        assert!(authenticate(Some(&file), &remote, &[], Some(&[0xff, b' ', b'x'])).is_err());
    }
}
