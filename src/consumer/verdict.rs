//! What follows from an outcome: pure, so that every case can be tried.

use super::OnReject;
use crate::controls::{self, Protection};
use crate::state::held::HeldState;

/// How far an event has come in its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Unsent,
    /// To be sent once more: it may have been delivered.
    UnsentAgain,
    InFlight,
    Delivered,
    /// Refused: the error named it, or it was alone.
    Refused,
    /// It failed together with others.
    Suspect,
    /// The far side went away: it may have been delivered.
    Unknown,
    /// Not sent: its key was held when its turn came.
    Wait,
}

impl Fate {
    /// Of an event that is being sent.
    pub fn in_flight() -> Fate {
        if controls::is_off(Protection::Acknowledgement) { Fate::Delivered } else { Fate::InFlight }
    }

    pub fn is_final(self) -> bool {
        matches!(self, Fate::Delivered | Fate::Refused | Fate::Wait)
    }

    /// What the event has to do after the far side failed; `behind` = an earlier event of its key is to be sent again.
    pub fn after_trouble(self, behind: bool) -> Fate {
        match self {
            Fate::InFlight | Fate::Unknown | Fate::Suspect => Fate::UnsentAgain,
            Fate::Delivered | Fate::Refused if behind => Fate::UnsentAgain,
            other => other,
        }
    }
}

/// What a settlement records of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Delivered,
    /// The first of its key to be refused: from now on the key is held.
    Refused,
    /// Delivered or not: it comes after the held one.
    Behind,
}

/// `None`: not to be settled yet, nor anything after it.
pub fn judge(fate: Fate, key_is_held: bool) -> Option<Verdict> {
    match (fate, key_is_held) {
        (Fate::Wait, _) | (Fate::Delivered | Fate::Refused, true) => Some(Verdict::Behind),
        (Fate::Delivered, false) => Some(Verdict::Delivered),
        (Fate::Refused, false) => Some(Verdict::Refused),
        (Fate::Unsent | Fate::UnsentAgain | Fate::InFlight | Fate::Suspect | Fate::Unknown, _) => None,
    }
}

/// What a refused event becomes, and whether the consumer goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consequence {
    pub state: HeldState,
    pub halts: bool,
}

/// `attempts` counts the one that was just refused.
pub fn after_refusal(policy: OnReject, attempts: u32, attempts_max: u32) -> Consequence {
    if attempts < attempts_max {
        return Consequence { state: HeldState::Retrying, halts: false };
    }
    match policy {
        OnReject::Hold => Consequence { state: HeldState::Dead, halts: false },
        OnReject::Skip => Consequence { state: HeldState::Skipped, halts: false },
        OnReject::Halt => Consequence { state: HeldState::Dead, halts: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Fate; 8] = [
        Fate::Unsent,
        Fate::UnsentAgain,
        Fate::InFlight,
        Fate::Delivered,
        Fate::Refused,
        Fate::Suspect,
        Fate::Unknown,
        Fate::Wait,
    ];

    #[test]
    fn only_what_is_final_is_settled() {
        for fate in ALL {
            for held in [false, true] {
                assert_eq!(judge(fate, held).is_some(), fate.is_final(), "{fate:?}");
            }
        }
    }

    #[test]
    fn behind_a_held_head_nothing_counts_as_delivered() {
        for fate in ALL.into_iter().filter(|fate| fate.is_final()) {
            assert_eq!(judge(fate, true), Some(Verdict::Behind));
        }
    }

    #[test]
    fn after_trouble_nothing_is_left_in_between() {
        for fate in ALL {
            for behind in [false, true] {
                let next = fate.after_trouble(behind);
                assert!(next.is_final() || matches!(next, Fate::Unsent | Fate::UnsentAgain), "{fate:?}");
                assert!(!(behind && matches!(next, Fate::Delivered | Fate::Refused)), "{fate:?} is behind another");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn an_event_is_dead_exactly_when_its_attempts_are_spent(
            policy in proptest::sample::select(vec![OnReject::Hold, OnReject::Skip, OnReject::Halt]),
            most in 1_u32..1_000,
        ) {
            for attempts in 1..=most + 1 {
                let Consequence { state, halts } = after_refusal(policy, attempts, most);
                proptest::prop_assert_eq!(state == HeldState::Retrying, attempts < most);
                proptest::prop_assert_eq!(halts, policy == OnReject::Halt && attempts >= most);
                proptest::prop_assert_eq!(state == HeldState::Skipped, policy == OnReject::Skip && attempts >= most);
            }
        }

        /// Settling goes through the window in order: a key's first refusal is recorded, everything of it behind that waits, and nothing is
        /// settled behind what is not final.
        #[test]
        fn a_settlement_is_a_run_of_final_fates_in_which_each_key_stops_at_its_first_refusal(
            fates in proptest::collection::vec((proptest::sample::select(ALL.to_vec()), 0_usize..3), 0..40),
        ) {
            let mut held = [false; 3];
            let mut settled = Vec::new();
            for (fate, key) in &fates {
                let Some(verdict) = judge(*fate, held[*key]) else { break };
                held[*key] |= verdict == Verdict::Refused;
                settled.push((verdict, *key));
            }
            let run = fates.iter().take_while(|(fate, _)| fate.is_final()).count();
            proptest::prop_assert_eq!(settled.len(), run);
            for key in 0..3 {
                let of_key: Vec<_> = settled.iter().filter(|(_, of)| *of == key).map(|(verdict, _)| *verdict).collect();
                let refusals = of_key.iter().filter(|verdict| **verdict == Verdict::Refused).count();
                proptest::prop_assert!(refusals <= 1);
                if let Some(at) = of_key.iter().position(|verdict| *verdict == Verdict::Refused) {
                    proptest::prop_assert!(of_key[at + 1..].iter().all(|verdict| *verdict == Verdict::Behind));
                }
            }
        }
    }

    #[test]
    fn attempts_are_spent_before_anything_is_dead() {
        for policy in [OnReject::Hold, OnReject::Skip, OnReject::Halt] {
            assert_eq!(after_refusal(policy, 4, 5), Consequence { state: HeldState::Retrying, halts: false });
        }
        assert_eq!(after_refusal(OnReject::Hold, 5, 5), Consequence { state: HeldState::Dead, halts: false });
        assert_eq!(after_refusal(OnReject::Skip, 5, 5), Consequence { state: HeldState::Skipped, halts: false });
        assert_eq!(after_refusal(OnReject::Halt, 5, 5), Consequence { state: HeldState::Dead, halts: true });
    }
}
