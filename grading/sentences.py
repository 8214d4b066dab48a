"""Gold answers that are sentences, as the V* rows have them: "The color of the boy's shirt is red."

Correct is what says the same beyond the question. The words of the question, and words that say nothing, are
taken off both sentences; what is left must be equal: "red", "It is red.", "The shirt is red." all leave
{red}. Where the question offers alternatives ("left or right"), their words count. A gold that begins with
yes or no is answered by the same word, or by the rest of it.

A question of yes or no is also answered by repeating it, affirmed or denied. A denial of something that the
gold does not say ("left, not right") adds nothing.

What is ambiguous is wrong: a denial of what the gold says, a word that neither question nor gold has, both
alternatives, a relation the other way round ("the tree is behind the car"), another subject ("The dog is
left" where the cat is). Synonyms are for a judge.
"""

import re

from grading.answers import DENIES, LONE_NUMBER_WORDS, unwrap, without_lead, yes_or_no


def words(text: str) -> list[str]:
    """Lower-case words; plurals and possessives without their s, numbers as digits.

    >>> words("the boy's two shoes are glass")
    ['the', 'boy', '2', 'shoe', 'are', 'glass']
    """
    found = []
    for word in re.findall(r"[a-z0-9]+(?:'s)?", text.lower().replace("n't", " not")):
        word = word.removesuffix("'s")
        word = re.sub(r"(?<=[a-z]{2})ies$", "y", word)
        word = re.sub(r"(?<=[a-z]{2}[^s])s$", "", word)
        found.append(str(LONE_NUMBER_WORDS.get(word, word)))
    return found


# Words that say nothing by themselves.
FILLER = """
    a an the this that these those there here it its he she his her they their them
    of to in on at by for with from and or as also is are was were be been being do does did has have had
    both very which what who whom whose where when how likely probably mostly mainly
    appear appears seem seems look looks made shown seen visible wear wearing
    says reads shows displays contains holds pair located placed positioned situated
    side part area color colored material
    image picture photo scene background foreground
"""
FILLER = frozenset(words(FILLER))
RELATIONS = "between infront behind above below under ontop inside outside beside left right"
RELATIONS = frozenset(RELATIONS.split())
# Seen from the other thing.
TURNED = {"left": "right", "above": "below", "over": "under", "infront": "behind"}
TURNED |= {other: word for word, other in TURNED.items()}
SEEN_FROM = re.compile(
    rf"(.+) (?:is|are)(?: (?:located|placed|on|to|at|the))* ({'|'.join(TURNED)})(?: side)?(?: of)? (the .+)"
)
ANYONE = {"person", "people", "someone", "individual", "object", "item", "thing", "one"}
VERB = re.compile(
    r"\b(?:is|are|was|were|appears?|seems?|looks?|has|have|had"
    r"|says?|reads?|shows?|displays?|contains?|holds?)\b"
)
SEEN = re.compile(r"^i (?:can )?(?:see|count|think) (?:that )?")
READS = re.compile(r"\b(?:says?|reads?|shows?|displays?|contains?|holds?)\b")
HOW_MANY = re.compile(r"how many (.+?) (?:are|is|were|do|does|can|have|has|in|on|at)\b")
STATES = re.compile(r"\b(?:is|are|was|were|has|have|does|do|did|can)\b|'re\b")
NOT = {"not", "no", "never", "cannot"}
# "What pattern does the tablecloth have?": what is asked for, of which an answer may speak.
ASKED_FOR = re.compile(
    r"\b(?:what|which) (?:kind of |type of )?(\w+) (?:is|are|was|were|does|do|did|can|has|have)\b"
)
# What stands after a noun and belongs to it.
AFTER_NOUN = re.compile(
    r"\b(?:on|in|at|by|with|near|next|behind|under|above|below|between|beside|infront|of|from|to|that|who"
    r"|which|facing|hanging|wearing|written|printed|worn|holding|standing|sitting|parked)\b"
)
# "What is on the table?", "Which animal is sleeping?", not "What is the man doing?"
WH_SUBJECT = re.compile(
    r"\b(?:what|which|who)\b.*?\b(?:is|are|was|were)\b (?!the\b|a\b|an\b|his\b|her\b|their\b)"
)
# What a sentence adds to its claim.
ADDED = re.compile(r",? (?:because|since|based on|judging|which|given|as (?:it|seen|shown|i)|than)\b.*", re.S)
ATTRIBUTE = re.compile(
    r"what (?:is|are|was|were) the (?:\w+ )?(?:color|material|shape|pose|size|pattern|number)s? (?:of|on)\b"
)


BEGINS = re.compile(r"\W*(yes|no)\b\W*", re.I)


def is_sentence(gold: str) -> bool:
    """More than a few words, which other rules compare as they stand."""
    return len(gold.split()) > 4 or bool(VERB.search(gold.lower()))


def begins_yes_or_no(gold: str) -> bool:
    return bool(BEGINS.match(plain(gold)))


def says_same(said: str, gold: str, question: str) -> bool:
    """Does an answer say what a gold sentence says beyond its question?

    >>> gold, question = "The color of the boy's shirt is red.", "What is the color of the boy's shirt?"
    >>> [says_same(s, gold, question) for s in ("red", "It is red.", "The shirt is red", "blue", "not red")]
    [True, True, True, False, False]
    >>> gold, question = "No, the dog is on the right side.", "Is the dog on the left side of the car?"
    >>> [says_same(s, gold, question) for s in ("No", "on the right side", "Yes", "left")]
    [True, True, False, False]
    """
    as_said = said
    gold = without_reason(gold)
    said = with_gerunds(without_reason(said), f"{gold} {question}")
    wanted = BEGINS.match(gold)
    if wanted:
        claim = yes_or_no(said) or restated(as_said, question)
        if claim is not None:
            return claim == wanted[1]
        gold = gold[wanted.end() :]
    said = without_denials(said, gold_key(gold, question))
    if bool(DENIES.search(said)) != bool(DENIES.search(gold)) or " or " in said and " or " not in gold:
        return False
    if len(VERB.findall(gold)) > 1 and not in_order(words(said), words(gold)):
        return False  # "Her hair is red and her dress is blue": which is which
    if gold.startswith("there ") and RELATIONS & set(words(said)) and not in_order(words(said), words(gold)):
        return False  # "There is a bed between two lamps", for a lamp between two beds
    known = [word for word in words(said) if word in words(gold)]
    alike = head(split_at_verb(said)[0]) == head(split_at_verb(gold)[0])
    if alike and SEEN_FROM.fullmatch(said) and RELATIONS & set(known) and not in_order(known, words(gold)):
        return False  # "The police car is left of the red car", for a red car left of it
    if counts_another(words(said), question):
        return False
    key = gold_key(gold, question)
    if not in_order([word for word in words(gold) if word in key], words(said)) and not is_sentence(gold):
        return False
    return bool(key) and says(said, gold, question) == key


def turned(said: str) -> str:
    """A relation seen from its other side.

    >>> turned("The bench is on the left side of the bicycle."), turned("The bench is left.")
    ('the bicycle is right of the bench', '')
    """
    found = SEEN_FROM.fullmatch(without_reason(said))
    return f"{found[3]} is {TURNED[found[2]]} of {found[1]}" if found else ""


def restated(said: str, question: str) -> str | None:
    """The yes or no of an answer that repeats a question, affirmed or denied; its words in their order.

    >>> question = "Is the dog to the left of the cat?"
    >>> [restated(s, question) for s in ("The dog is left of the cat.", "It isn't to the left of the cat.")]
    ['yes', 'no']
    >>> [restated(s, question) for s in ("The cat is left of the dog.", "The dog is.", "The cat is gray.")]
    [None, None, None]
    """
    states = STATES.search(said.lower().replace("n't", " not"))
    said = plain(said)
    question = plain(question)
    asked = [word for word in words(question) if word not in FILLER]
    spoken = [word for word in words(said) if word not in FILLER | NOT]
    if not states or " or " in f"{question} {said}" or DENIES.search(question):
        return None
    to_its_end = asked[-1:] == spoken[-1:] or re.search(r"\b(?:them|it|there)$", said)
    if not (to_its_end and set(spoken) - set(asked[:1]) and in_order(spoken, asked)):
        return None
    return "no" if DENIES.search(said) else "yes"


def counts_another(said: list[str], question: str) -> bool:
    """Does an answer to "how many" speak of things of the question, but not of those that are counted?

    >>> question = "How many sheep are near the fence?"
    >>> [counts_another(said, question) for said in (["4"], ["4", "sheep"], ["4", "fence"])]
    [False, False, True]
    """
    counted = HOW_MANY.search(plain(question))
    asked = {word for word in words(plain(question)) if word not in FILLER}
    return bool(counted) and bool(asked & set(said)) and head(counted[1]) not in said


def in_order(some: list[str], all_words: list[str]) -> bool:
    """Are these, but for words that say nothing, among all, in the same order?

    >>> in_order(["dog", "is", "left"], ["dog", "left", "cat"]), in_order(["cat", "dog"], ["dog", "cat"])
    (True, False)
    """
    rest = iter(all_words)
    return all(word in rest for word in some if word not in FILLER)


def without_denials(said: str, key: set[str]) -> str:
    """An answer without the parts that deny what is not in the gold's key.

    >>> without_denials("it is left, not right", {"left"}), without_denials("not left", {"left"})
    ('it is left', 'not left')
    """
    parts = re.split(r"[,;.]\s", said)
    kept = [part for part in parts if not DENIES.search(part) or key & set(words(part))]
    return ", ".join(kept) if kept else said


def gold_key(gold: str, question: str) -> set[str]:
    """What a gold sentence says beyond its question; empty where nothing is left to go by.

    >>> gold_key("The dog is on the left side of the car.", "Is the dog on the left or right of the car?")
    {'left'}
    """
    return content(plain(gold), question)


def says(said: str, gold: str, question: str) -> set[str]:
    """What an answer says beyond the question. {"?"} where it speaks of something else than the gold does."""
    subject, predicate = split_at_verb(said)
    if not predicate:
        return content(said, question)
    about = content(subject, "") - ANYONE
    if thing := ATTRIBUTE.match(plain(question)):  # whatever the thing is called, its value decides
        asked_of = plain(question)[thing.end() :]
        other = head(subject) in words(asked_of) and head(subject) != head(asked_of)
        return {"?"} if other else content(predicate, question)
    if WH_SUBJECT.search(plain(question)) and about == gold_key(gold, question):
        return about | content(predicate, question)  # the answer in front: "A van is parked there."
    if about <= subject_words(said, gold, question) or about <= asked_for(question):
        return content(predicate, question) | (content(subject, question) - ANYONE)
    return {"?"} | content(predicate, question)


def subject_words(said: str, gold: str, question: str) -> set[str]:
    """The words that the subject of an answer may hold, if it is to speak of what the gold speaks of."""
    subject, _ = split_at_verb(said)
    gold_subject, _ = split_at_verb(gold)
    about = content(subject, "")
    gold_about = content(gold_subject, "")
    asked = [word for word in words(plain(question)) if word not in FILLER]
    if not VERB.search(gold):  # a word or two: what the question is about comes first
        return set(asked[:1])
    if not gold_about:  # "There are two cups"
        return content(gold, "")
    if content(gold_subject, question):  # the answer stands in front: "A cat is sitting on the bench."
        return gold_about | (set(asked) if ANYONE & set(words(subject)) else set())
    if READS.search(said):  # "The sign says STOP", where the gold speaks of the word on the sign
        return set(asked)
    # "The cup on the table", for the cup: the same noun, and more of the question.
    other_side = (about - gold_about) & RELATIONS
    return set(asked) if head(subject) == head(gold_subject) and not other_side else set()


def head(subject: str) -> str:
    """The noun of a subject, without what stands after it; "" for a pronoun.

    >>> head("the color of the boy's shirt"), head("the window behind the couch"), head("it")
    ('shirt', 'window', '')
    """
    subject = re.sub(r"^the (?:color|material|shape|pattern|pose|size|number|name) of ", "", subject.strip())
    found = [word for word in words(AFTER_NOUN.split(subject)[0]) if word not in FILLER]
    return found[-1] if found else ""


def with_gerunds(said: str, other: str) -> str:
    """An answer in whose place of "rides" stands "is riding", where the other text has that.

    >>> with_gerunds("he rides a horse and sits", "The man is riding a horse, sitting.")
    'he is riding a horse and is sitting'
    """
    for stem in re.findall(r"\b(\w{2,})ing\b", other.lower()):
        short = stem[:-1] if stem[-1] == stem[-2] else stem
        said = re.sub(rf"\b(?:{short}e?s|{stem}e?s|{stem[:-1]}ies)\b", f"is {stem}ing", said)
    return said


def without_reason(text: str) -> str:
    """
    >>> without_reason("It is red, because the zoom shows it."), without_reason("B. The bag is red.")
    ('red', 'the bag is red')
    """
    text = re.sub(r"^\(?[a-i][.):] (?=\w)", "", plain(text))
    return ADDED.sub("", text).strip(" .")


def asked_for(question: str) -> set[str]:
    """The thing of which a question asks the kind, or between two of which it lets choose.

    >>> asked_for("What pattern does it have?"), asked_for("Is it a blue bag or a brown bag?")
    ({'pattern'}, {'bag'})
    """
    question = plain(question)
    found = ASKED_FOR.search(question) or re.search(r"\b(\w+) or (?:\w+ ){1,3}\1\b", question)
    return set(words(found[1])) if found else set()


def content(text: str, question: str) -> set[str]:
    """The words of a text that say something, less those of the question that are no alternative."""
    question = plain(question)
    asked = set(words(question)) - alternatives(question)
    found = {word for word in words(text) if word not in FILLER and word not in asked}
    # No article ends a sentence: "The letter on the tile is A." says the letter.
    return found | ({"a"} if re.search(r"(?:^|\W)a\W*$", text.lower()) else set())


def alternatives(question: str) -> set[str]:
    """The words between which a question lets choose.

    >>> sorted(alternatives("is the car on the left or right side of the tree?"))
    ['left', 'right']
    >>> sorted(alternatives("is the flag blue and yellow or red and yellow?")), alternatives("what is it?")
    (['blue', 'red', 'yellow'], set())
    """
    before, found, after = question.partition(" or ")
    if not found:
        return set()
    before = before.rpartition(", ")[2]  # "What is it made of, brick or stone?"
    determined = re.match(r"(?:(?:to|on|at|in) )?(?:the|a|an) ", after)
    after = re.split(
        r"\b(?:side|of|the|than|to|from|in|it)\b|[?,]", after[determined.end() if determined else 0 :]
    )
    after = after[0].split()
    if not determined:  # "Are the zebras standing or lying down?": not the zebras
        before = re.sub(r"\b(?:the|a|an) \w+(?= \w)", "", before)
    before = [
        word for word in re.findall(r"[\w'-]+", before) if word not in ("side", "the", "a", "an", "to", "on")
    ]
    if set(after) & RELATIONS:  # "in front of the car or behind it"
        before = [word for word in before if word in RELATIONS]
    if after and after[0].endswith("ing"):  # "carrying the board or riding it"
        before = [word for word in before if word.endswith("ing")]
        after = after[:1]
    if after and words(after[0])[0].isdigit():  # "two or four windows"
        after = after[:1]
    before = before[-len(after) :] if after else []
    if before[-1:] == after[-1:] and "and" not in after:  # "long sleeves or short sleeves"
        before = before[:-1]
        after = after[:-1]
    return set(words(" ".join(after + before))) - FILLER


def plain(text: str) -> str:
    """Lower case, without wrapping and lead, in one spelling, "in front of" in one word.

    >>> plain("The answer is: Dark-grey."), plain("It's in front of the wooden bench")
    ('dark gray', 'infront of the wood bench')
    """
    text = without_lead(" ".join(unwrap(text).split())).lower().removeprefix("that ")
    text = SEEN.sub("", text).removeprefix("the number of ")
    text = text.replace("grey", "gray").replace("colour", "color").replace("wooden", "wood")
    text = text.replace("in front of", "infront of").replace("on top of", "ontop of").replace("'re ", " are ")
    text = re.sub(r"\b(he|she|there)'s\b", r"\1 is", text)
    text = re.sub(r"\b(left|right)[- ]hand\b", r"\1", text).replace("-", " ")
    return text.strip(" .")


def split_at_verb(sentence: str) -> tuple[str, str]:
    """Subject and predicate; ("", "") where there is no verb."""
    verb = VERB.search(sentence)
    return (sentence[: verb.start()], sentence[verb.end() :]) if verb else ("", "")
