//! Shuffle sharding: a flow is dealt a small hand of queues, so that one flow can spoil the service of few others.

/// Largest hand.
pub const MAX_HAND: usize = 8;

/// Deals hands of `hand_size` different queues out of `deck_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealer {
    deck_size: usize,
    hand_size: usize,
}

impl Dealer {
    /// A dealer; the sizes are brought into range (validation has refused what is outside of it).
    pub fn new(deck_size: usize, hand_size: usize) -> Dealer {
        let deck_size = deck_size.max(1);
        Dealer { deck_size, hand_size: hand_size.clamp(1, MAX_HAND.min(deck_size)) }
    }

    /// Fills the hand that belongs to `hash`; every hand is dealt with nearly the same probability.
    pub fn deal(&self, mut hash: u64, hand: &mut [usize; MAX_HAND]) -> usize {
        let mut remainders = [0usize; MAX_HAND];
        for (at, remainder) in remainders.iter_mut().enumerate().take(self.hand_size) {
            let left = (self.deck_size - at) as u64;
            *remainder = (hash % left) as usize;
            hash /= left;
        }
        for at in 0..self.hand_size {
            let mut card = remainders[at];
            for earlier in (0..at).rev() {
                if card >= remainders[earlier] {
                    card += 1;
                }
            }
            hand[at] = card;
        }
        self.hand_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_are_different_queues_of_the_deck() {
        for (deck, size) in [(1, 1), (6, 6), (16, 4), (64, 6), (128, 6), (256, 7)] {
            let dealer = Dealer::new(deck, size);
            let mut seen = vec![0u32; deck];
            for n in 0..2000u64 {
                let mut hand = [0; MAX_HAND];
                let count = dealer.deal(crate::flowcontrol::hash("schema", &n.to_string()), &mut hand);
                assert_eq!(count, size);
                let mut cards = hand[..count].to_vec();
                cards.sort_unstable();
                cards.dedup();
                assert_eq!(cards.len(), size, "hand {hand:?} of {deck}");
                assert!(cards.iter().all(|card| *card < deck));
                cards.iter().for_each(|card| seen[*card] += 1);
            }
            let (least, most) = (seen.iter().min(), seen.iter().max());
            let mean = 2000 * size as u32 / deck as u32;
            assert!(
                least >= Some(&(mean / 3)) && most <= Some(&(mean * 2)),
                "{deck} {size}: {least:?} {most:?}"
            );
        }
    }

    #[test]
    fn the_whole_deck_can_be_dealt() {
        // All 6 orders of 3 cards, each once.
        let dealer = Dealer::new(3, 3);
        let mut hands: Vec<[usize; 3]> = (0..6)
            .map(|hash| {
                let mut hand = [0; MAX_HAND];
                dealer.deal(hash, &mut hand);
                [hand[0], hand[1], hand[2]]
            })
            .collect();
        hands.sort_unstable();
        hands.dedup();
        assert_eq!(hands.len(), 6);
    }
}
