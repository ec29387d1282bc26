//! Scripts of applications that register, crash, come back and compete for a registration.

use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

use super::reason::ErrorReason;
use super::spec::{MAX_HELLO, MAX_PROTOCOLS, hello_len};
use std::sync::Arc;

use super::*;
use crate::Now;
use crate::node::RegistrationId;

const SECOND: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_800_000_000) }
}

fn spec(client_id: &str, protocols: &[(&str, u32, u64)]) -> RegistrationSpec {
    RegistrationSpec {
        client_id: client_id.into(),
        protocols: protocols
            .iter()
            .map(|(name, version, count)| ProtocolSpec {
                capability: Capability::new(name, *version, *count),
                max_message_bytes: 0,
                keep_first: 0,
                greeting: Vec::new(),
            })
            .collect(),
        linger: None,
        overflow: Default::default(),
        channel_queue_bytes: 0,
        wanted: Wanted::Unsaid,
        desired_peers: 0,
    }
}

struct World {
    registry: Registry,
    now: Now,
    principal: Arc<str>,
    may_take_over: bool,
}

impl World {
    fn new(config: Config) -> Self {
        let registry = Registry::new(config, StdRng::seed_from_u64(7));
        Self { registry, now: start(), principal: "uid:1000".into(), may_take_over: true }
    }

    fn claim(&mut self, claim: Claim<'_>, stream: bool) -> Result<Claimed, LeaseError> {
        let caller = Caller { principal: &self.principal, may_take_over: self.may_take_over };
        if stream {
            self.registry.attach(self.now, caller, claim)
        } else {
            self.registry.register(self.now, caller, claim)
        }
    }

    fn generation(&self, id: RegistrationId) -> u64 {
        self.registry.get(id).unwrap().generation()
    }

    fn register(&mut self, spec: RegistrationSpec) -> Result<Claimed, LeaseError> {
        let client = spec.client_id.clone();
        self.claim(
            Claim { who: Who::Client(&client), spec: Some(spec), request_id: "", takeover: false },
            false,
        )
    }

    fn attach(&mut self, who: Who<'_>, request_id: &str, takeover: bool) -> Result<Claimed, LeaseError> {
        self.claim(Claim { who, spec: None, request_id, takeover }, true)
    }

    fn resolve(&mut self, who: Who<'_>) -> Result<RegistrationId, LeaseError> {
        let caller = Caller { principal: &self.principal, may_take_over: false };
        self.registry.resolve(self.now, caller, who)
    }

    fn wait(&mut self, seconds: u32) {
        self.now = self.now.after(seconds * SECOND);
        self.registry.handle_timeout(self.now);
    }

    fn ended(&mut self) -> Vec<(String, bool)> {
        std::iter::from_fn(|| self.registry.poll_action())
            .map(|Action::Ended { registration, expired }| {
                (registration.spec().client_id.to_string(), expired)
            })
            .collect()
    }
}

fn reason(result: Result<Claimed, LeaseError>) -> ErrorReason {
    result.expect_err("must be refused").reason()
}

#[test]
fn a_lease_from_call_to_stream_to_crash_and_back() {
    let mut world = World::new(Config::default());
    let made = world.register(spec("geth", &[("eth", 69, 18), ("snap", 1, 8)])).unwrap();
    assert!(!made.resumed && made.stream.is_none());
    assert_eq!(made.changes.added.len(), 2);
    let state = |world: &World| world.registry.get(made.id).map(Registration::state_name);
    assert_eq!(state(&world), Some(StateName::Detached));

    world.wait(29);
    let first = world.attach(Who::Token(&made.token.expose()), "", false).unwrap();
    assert!(first.resumed);
    assert_eq!((world.generation(made.id), state(&world)), (2, Some(StateName::Attached)));
    world.wait(100_000);
    assert_eq!(world.registry.poll_timeout(), None, "a held lease does not expire");

    world.registry.detach(world.now, made.id, first.stream.unwrap());
    assert_eq!(state(&world), Some(StateName::Lingering));
    assert_eq!(world.registry.poll_timeout(), Some(world.now.mono + 30 * SECOND));
    world.wait(29);
    let second = world.attach(Who::Token(&first.token.expose()), "", false).unwrap();
    assert_eq!(second.replaced, None);

    world.registry.detach(world.now, made.id, first.stream.unwrap());
    assert_eq!(state(&world), Some(StateName::Attached), "the end of an old stream ends nothing");
    world.registry.detach(world.now, made.id, second.stream.unwrap());
    world.wait(30);
    assert_eq!(world.ended(), [("geth".to_owned(), true)]);
    assert!(world.registry.owner("eth").is_none());
    assert_eq!(
        reason(world.attach(Who::Token(&second.token.expose()), "", false)),
        ErrorReason::RegistrationNotFound
    );
}

#[test]
fn tokens_by_the_table() {
    let mut world = World::new(Config::default());
    let made = world.register(spec("a", &[("x", 1, 1)])).unwrap();
    let (first, stale) = (made.token.expose(), ErrorReason::ResumeTokenStale);

    // The current token attaches even while another stream holds the lease.
    let one = world.attach(Who::Token(&first), "try-1", false).unwrap();
    let generation = world.generation(one.id);
    // Its answer is lost: the same attempt gets the same answer, and the stream that no client reads ends.
    let again = world.attach(Who::Token(&first), "try-1", false).unwrap();
    assert_eq!(again.token.expose(), one.token.expose());
    assert_eq!((world.generation(again.id), again.replaced), (generation, one.stream));
    // Another attempt with the same old token comes from an old process.
    assert_eq!(reason(world.attach(Who::Token(&first), "try-2", false)), stale);
    assert_eq!(reason(world.attach(Who::Token(&first), "", false)), stale);
    let call = Claim { who: Who::Token(&first), spec: None, request_id: "try-1", takeover: false };
    assert_eq!(reason(world.claim(call, false)), stale, "a call is another attempt than a stream");
    let two = world.attach(Who::Token(&one.token.expose()), "try-1", false).unwrap();
    assert_eq!(two.replaced, again.stream);
    // After the current token is replaced, the attempt before it cannot be repeated.
    assert_eq!(reason(world.attach(Who::Token(&first), "try-1", false)), stale);

    // By client id: not while attached, unless it takes over.
    assert_eq!(reason(world.attach(Who::Client("a"), "", false)), ErrorReason::RegistrationAttached);
    world.may_take_over = false;
    assert_eq!(reason(world.attach(Who::Client("a"), "", true)), ErrorReason::NotAuthorized);
    world.may_take_over = true;
    let taken = world.attach(Who::Client("a"), "try-1", true).unwrap();
    assert_eq!(taken.replaced, two.stream);
    // All earlier tokens are retired, whatever request id they come with.
    for token in [&first, &one.token.expose(), &two.token.expose()] {
        assert_eq!(reason(world.attach(Who::Token(token), "try-1", false)), stale);
        assert_eq!(world.resolve(Who::Token(token)).unwrap_err().reason(), stale);
    }
    // The answer to the take-over is lost: the same attempt is repeated, and needs no `takeover`.
    let again = world.attach(Who::Client("a"), "try-1", false).unwrap();
    assert_eq!((again.token.expose(), again.replaced), (taken.token.expose(), taken.stream));
    assert_eq!(world.resolve(Who::Token(&taken.token.expose())), Ok(made.id));

    // Texts that are not tokens, and a token of a registration that never existed.
    for token in ["", "zz", &"0".repeat(48)] {
        assert_eq!(
            reason(world.attach(Who::Token(token), "try-1", false)),
            ErrorReason::RegistrationNotFound
        );
    }
}

#[test]
fn a_crash_at_every_point_of_coming_back_ends_well() {
    // The client remembers one token when it crashes: the one that it used last, or the one that it was given. Then it
    // repeats its attempt under the same request id, or attaches by client id.
    for lost_answer in [false, true] {
        for stream_noticed in [false, true] {
            for by_client in [false, true] {
                let mut world = World::new(Config::default());
                let made = world.register(spec("a", &[("x", 1, 1)])).unwrap();
                let first = world.attach(Who::Token(&made.token.expose()), "r1", false).unwrap();
                let remembered = if lost_answer { made.token.expose() } else { first.token.expose() };
                let request_id = if lost_answer { "r1" } else { "r2" };
                if stream_noticed {
                    world.registry.detach(world.now, made.id, first.stream.unwrap());
                }
                let who = if by_client { Who::Client("a") } else { Who::Token(&remembered) };
                let back = world.attach(who, request_id, false);
                let what = format!("lost {lost_answer} noticed {stream_noticed} client {by_client}");
                if by_client && !stream_noticed {
                    assert_eq!(reason(back), ErrorReason::RegistrationAttached, "{what}");
                } else {
                    let back = back.expect(&what);
                    assert!(world.resolve(Who::Token(&back.token.expose())).is_ok(), "{what}");
                    assert_eq!(back.replaced.is_some(), !stream_noticed, "{what}");
                }
            }
        }
    }
}

#[test]
fn registering_is_all_or_none_and_names_have_one_owner() {
    let mut world = World::new(Config::default());
    world.register(spec("a", &[("eth", 68, 17)])).unwrap();
    let error = world.register(spec("b", &[("mine", 1, 4), ("eth", 69, 18)])).unwrap_err();
    assert_eq!(
        error,
        LeaseError::ProtocolAlreadyRegistered {
            protocol: "eth".into(),
            owner: "a".into(),
            state: StateName::Detached,
            expire_time: Some(Duration::from_secs(1_800_000_030)),
        }
    );
    let text = error.to_string();
    assert!(text.contains("eth") && text.contains("\"a\"") && text.contains("1800000030"), "{text}");
    assert!(world.registry.owner("mine").is_none(), "nothing of it was taken");
    world.wait(30);
    world.register(spec("b", &[("mine", 1, 4), ("eth", 69, 18)])).unwrap();
}

#[test]
fn a_lost_answer_to_a_registration_is_repeated() {
    let mut world = World::new(Config::default());
    let claim = || Claim {
        who: Who::Client("a"),
        spec: Some(spec("a", &[("x", 1, 1)])),
        request_id: "r",
        takeover: false,
    };
    let made = world.claim(claim(), false).unwrap();
    let again = world.claim(claim(), false).unwrap();
    assert_eq!((again.id, world.generation(again.id), again.resumed), (made.id, 1, true));
    assert_eq!(again.token.expose(), made.token.expose());
    // Another request id is another attempt: the earlier token is retired.
    let other = world.claim(Claim { request_id: "s", ..claim() }, false).unwrap();
    assert_eq!(world.generation(other.id), 2);
    assert_eq!(
        reason(world.attach(Who::Token(&made.token.expose()), "r", false)),
        ErrorReason::ResumeTokenStale
    );
}

#[test]
fn a_resume_with_a_changed_spec_keeps_what_is_the_same() {
    let mut world = World::new(Config::default());
    world.register(spec("other", &[("snap", 1, 8)])).unwrap();
    let made = world.register(spec("a", &[("eth", 68, 17), ("x", 1, 5), ("y", 1, 5)])).unwrap();
    let change = |world: &mut World, token: &str, protocols: &[(&str, u32, u64)]| {
        let spec = Some(spec("a", protocols));
        world.claim(Claim { who: Who::Token(token), spec, request_id: "", takeover: false }, true)
    };
    let token = made.token.expose();
    assert_eq!(
        reason(change(&mut world, &token, &[("eth", 68, 17), ("snap", 1, 8)])),
        ErrorReason::ProtocolAlreadyRegistered
    );
    assert_eq!(world.generation(made.id), 1, "nothing happened, the token still counts");
    let changed = change(&mut world, &token, &[("eth", 68, 17), ("eth", 69, 18), ("x", 1, 6)]).unwrap();
    let names = |list: &[Capability]| -> Vec<String> {
        list.iter().map(|capability| format!("{capability} {}", capability.message_count)).collect()
    };
    assert_eq!(names(&changed.changes.kept), ["eth/68 17"]);
    assert_eq!(names(&changed.changes.added), ["eth/69 18", "x/1 6"]);
    assert_eq!(names(&changed.changes.removed), ["x/1 5", "y/1 5"]);
    let token = changed.token.expose();
    let renamed = Claim {
        who: Who::Token(&token),
        spec: Some(spec("b", &[("eth", 68, 17)])),
        request_id: "",
        takeover: false,
    };
    assert_eq!(reason(world.claim(renamed, true)), ErrorReason::InvalidField);
}

#[test]
fn linger_and_renewal() {
    let mut world = World::new(Config::default());
    // the requested linger → the seconds for which a detached and a lingering lease last
    for (linger, detached, lingering) in
        [(None, 30, 30), (Some(0), 30, 0), (Some(5), 30, 5), (Some(600), 600, 600)]
    {
        let spec = RegistrationSpec { linger: linger.map(Duration::from_secs), ..spec("a", &[("x", 1, 1)]) };
        let made = world.register(spec).unwrap();
        let left = |world: &World| {
            world.registry.get(made.id).map(|known| known.expires().unwrap() - world.now.mono)
        };
        assert_eq!(left(&world), Some(detached * SECOND), "{linger:?}");
        world.wait(20);
        world.registry.renew(world.now, made.id);
        assert_eq!(left(&world), Some(detached * SECOND), "{linger:?}");
        let stream = world.attach(Who::Client("a"), "", false).unwrap().stream.unwrap();
        world.registry.detach(world.now, made.id, stream);
        assert_eq!(left(&world), (lingering > 0).then_some(lingering * SECOND), "{linger:?}");
        world.registry.delete(made.id);
        assert_eq!(world.ended(), [("a".to_owned(), lingering == 0)]);
    }
}

#[test]
fn who_may_act_for_a_registration() {
    let mut world = World::new(Config::default());
    let made = world.register(spec("a", &[("eth", 69, 18)])).unwrap();
    let token = made.token.expose();
    let acts = |world: &mut World, who: Who<'_>| world.resolve(who).map_err(|error| error.reason());
    // the target → the result for the same principal, and for another one
    let not_found = Err(ErrorReason::RegistrationNotFound);
    let unknown = Err(ErrorReason::ProtocolNotRegistered);
    let table = [
        (Who::Token(&token), Ok(made.id), Ok(made.id)),
        (Who::Client("a"), Ok(made.id), not_found),
        (Who::Protocol("eth"), Ok(made.id), Err(ErrorReason::NotAuthorized)),
        (Who::Protocol("eth/69"), Ok(made.id), Err(ErrorReason::NotAuthorized)),
        (Who::Client("b"), not_found, not_found),
        (Who::Protocol("eth/68"), unknown, unknown),
        (Who::Protocol("eth/x"), unknown, unknown),
        (Who::Protocol("snap"), unknown, unknown),
    ];
    for (index, (who, same, other)) in table.into_iter().enumerate() {
        assert_eq!(acts(&mut world, who), same, "row {index}");
        world.principal = "uid:1001".into();
        assert_eq!(acts(&mut world, who), other, "row {index}");
        world.principal = "uid:1000".into();
    }
    let mut world = World::new(Config { require_resume_token: true, ..Config::default() });
    let made = world.register(spec("a", &[("eth", 69, 18)])).unwrap();
    let token = made.token.expose();
    for who in [Who::Client("a"), Who::Protocol("eth")] {
        assert_eq!(acts(&mut world, who), Err(ErrorReason::NotAuthorized));
    }
    assert_eq!(reason(world.attach(Who::Client("a"), "", false)), ErrorReason::NotAuthorized);
    assert!(world.attach(Who::Token(&token), "", false).is_ok());
}

#[test]
fn what_cannot_be_right_is_refused_by_field() {
    let ok = || spec("a", &[("eth", 69, 18), ("x", 1, 4)]);
    let changed = |change: fn(&mut RegistrationSpec)| {
        let mut spec = ok();
        change(&mut spec);
        spec
    };
    let table: &[(RegistrationSpec, &str)] = &[
        (changed(|spec| spec.client_id = "".into()), "spec.client_id"),
        (changed(|spec| spec.client_id = "with space".into()), "spec.client_id"),
        (changed(|spec| spec.client_id = "x".repeat(65).into()), "spec.client_id"),
        (changed(|spec| spec.protocols.clear()), "spec.protocols"),
        (changed(|spec| spec.protocols[0].capability.message_count = 17), "spec.protocols[0].message_count"),
        (changed(|spec| spec.protocols[1].capability.message_count = 0), "spec.protocols[1].message_count"),
        (
            changed(|spec| spec.protocols[1].capability.message_count = 1 << 40),
            "spec.protocols[1].message_count",
        ),
        (changed(|spec| spec.protocols[1].capability.name = "toolongname".into()), "spec.protocols[1].name"),
        (changed(|spec| spec.protocols[1] = spec.protocols[0].clone()), "spec.protocols[1].name"),
        (changed(|spec| spec.protocols[1].keep_first = 5), "spec.protocols[1].keep_first"),
        (
            changed(|spec| spec.protocols[1].max_message_bytes = 1 << 24),
            "spec.protocols[1].max_message_bytes",
        ),
        (
            changed(|spec| spec.protocols[1].greeting.push(Greeting { code: 4, payload: "".into() })),
            "spec.protocols[1].greeting[0].code",
        ),
        (changed(|spec| spec.linger = Some(601 * SECOND)), "spec.linger"),
        (changed(|spec| spec.overflow.stall_limit = 11 * SECOND), "spec.overflow_policy.stall_limit"),
    ];
    for (spec, expected) in table {
        match spec.check(false) {
            Err(LeaseError::InvalidField { field, problem }) => {
                assert_eq!(&field, expected);
                assert!(problem.len() < 200, "{problem}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    ok().check(false).unwrap();
    let other_count = changed(|spec| spec.protocols[0].capability.message_count = 17);
    assert!(other_count.check(false).unwrap_err().to_string().contains("eth/69 has 18 messages, not 17"));
    other_count.check(true).unwrap();
}

#[test]
fn the_operators_table_of_message_counts_holds() {
    let message_counts = vec![Capability::new("xyz", 2, 5)];
    let mut world = World::new(Config { message_counts, ..Config::default() });
    let refused = world.register(spec("a", &[("b", 1, 1), ("xyz", 2, 6)])).unwrap_err().to_string();
    for part in ["spec.protocols[1].message_count", "xyz/2 has 5 messages", "--message-counts", "not 6"] {
        assert!(refused.contains(part), "{refused}");
    }
    world.register(spec("a", &[("xyz", 2, 5), ("xyz", 3, 6)])).unwrap();
    let known = world.register(spec("b", &[("wit", 2, 5)])).unwrap_err().to_string();
    assert!(known.contains("wit/2 of Polygon's Bor has 6 messages"), "{known}");
}

#[test]
fn limits_hold() {
    let mut world = World::new(Config { max_registrations: 3, max_per_principal: 2, ..Config::default() });
    world.register(spec("a", &[("a", 1, 1)])).unwrap();
    world.register(spec("b", &[("b", 1, 1)])).unwrap();
    let refused = |result: Result<Claimed, LeaseError>| result.unwrap_err().to_string();
    assert_eq!(
        refused(world.register(spec("c", &[("c", 1, 1)]))),
        "the limit of 2 registrations of this principal is reached"
    );
    world.principal = "uid:1".into();
    world.register(spec("c", &[("c", 1, 1)])).unwrap();
    assert_eq!(refused(world.register(spec("d", &[("d", 1, 1)]))), "the limit of 3 registrations is reached");
    let names: Vec<String> = (0..17).map(|index| format!("p{index}")).collect();
    let many: Vec<(&str, u32, u64)> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
    assert!(matches!(
        spec("e", &many).check(false),
        Err(LeaseError::LimitReached { limit: MAX_PROTOCOLS, .. })
    ));
}

#[test]
fn our_hello_stays_within_what_peers_accept() {
    let mut world =
        World::new(Config { max_registrations: 100, max_per_principal: 100, ..Config::default() });
    let mut taken = 0;
    let error = loop {
        let names: Vec<String> = (0..16).map(|index| format!("n{taken:02}x{index:04}")).collect();
        let many: Vec<(&str, u32, u64)> = names.iter().map(|name| (name.as_str(), u32::MAX, 1)).collect();
        match world.register(spec(&format!("c{taken}"), &many)) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, LeaseError::HelloTooLarge { limit: MAX_HELLO });
    let protocols = world.registry.iter().flat_map(|registration| &registration.spec().protocols);
    let len = hello_len(128, protocols.map(|protocol| &protocol.capability));
    assert!(len <= MAX_HELLO && len > MAX_HELLO - 16 * 15, "{len}");
    // Checked against a computation by hand: list(version, name, list(list(cap, version)), port, id).
    let caps = [Capability::new("eth", 68, 17)];
    // eth/68: c5 83 "eth" 44 → 6 bytes; list header 1; body 1 + 4 + 7 + 3 + 66, list header 2.
    assert_eq!(hello_len(3, caps.iter()), 2 + 1 + 4 + 7 + 3 + 66);
}

#[test]
fn a_greeting_is_replaced_whole_or_not_at_all() {
    let mut world = World::new(Config::default());
    let id = world.register(spec("a", &[("x", 1, 2)])).unwrap().id;
    let greeting = |code| vec![Greeting { code, payload: "hello".into() }];
    world.registry.set_greeting(id, "x", 1, greeting(1)).unwrap();
    for (name, version, messages) in [("x", 1, greeting(2)), ("x", 2, greeting(1)), ("y", 1, greeting(1))] {
        assert!(world.registry.set_greeting(id, name, version, messages).is_err());
    }
    assert_eq!(world.registry.get(id).unwrap().spec().protocols[0].greeting, greeting(1));
}

#[test]
fn all_wrong_fields_of_a_spec_are_named() {
    let one = spec("a", &[("", 1, 1)]).check(false);
    assert!(matches!(one, Err(LeaseError::InvalidField { field, .. }) if field == "spec.protocols[0].name"));
    let Err(LeaseError::InvalidFields(fields)) =
        spec("", &[("", 1, 0), ("x", 1, 1), ("x", 1, 1)]).check(false)
    else {
        panic!("several fields are wrong")
    };
    let paths: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "spec.client_id",
        "spec.protocols[0].name",
        "spec.protocols[0].message_count",
        "spec.protocols[2].name",
    ];
    assert_eq!(paths, expected);
}
