"""Gold answers that are sentences, as the V* rows have them: "The color of the boy's shirt is red."

Correct is what says the same beyond the question. The words of the question, and words that say nothing, are
taken off both sentences; what is left must be equal: "red", "It is red.", "The shirt is red." all leave
{red}. Where the question offers alternatives ("left or right"), their words count. A gold that begins with
yes or no is answered by the same word, or by the rest of it.

What is ambiguous is wrong: a denial that the gold has not, a word that neither question nor gold has, both
alternatives, another subject ("The dog is left" where the cat is). Synonyms are for a judge.
"""

import re

from grading.answers import DENIES, NUMBER_WORDS, unwrap, without_lead, yes_or_no

# Words that say nothing by themselves.
FILLER = """
    a an the this that these those there here it its he she his her they their them
    of to in on at by for with from and or as also is are was were be been being do does did has have had
    both very which what who whom whose where when how likely probably mostly mainly
    appear appears seem seems look looks made shown seen visible wear wearing
    located placed positioned situated side part area color colored material
    image picture photo scene background foreground
"""
FILLER = frozenset(FILLER.split())
ANYONE = {"person", "people", "someone", "individual", "object", "item", "thing", "one"}
VERB = re.compile(r"\b(?:is|are|was|were|appears?|seems?|looks?|has|have|had)\b")
# What a sentence adds to its claim.
ADDED = re.compile(r",? (?:because|since|based on|judging|which|given|as (?:it|seen|shown|i)|than)\b.*", re.S)
ATTRIBUTE = re.compile(
    r"what (?:is|are|was|were) the (?:\w+ )?(?:color|material|shape|pose|size|pattern|number)s? of"
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
    said = plain(said)
    gold = plain(gold)
    wanted = BEGINS.match(gold)
    if wanted:
        claim = yes_or_no(said)
        if claim is not None:
            return claim == wanted[1]
        gold = gold[wanted.end() :]
    if bool(DENIES.search(said)) != bool(DENIES.search(gold)):
        return False
    key = gold_key(gold, question)
    return bool(key) and says(said, gold, question) == key


def gold_key(gold: str, question: str) -> set[str]:
    """What a gold sentence says beyond its question; empty where nothing is left to go by.

    >>> gold_key("The dog is on the left side of the car.", "Is the dog on the left or right of the car?")
    {'left'}
    """
    return content(plain(gold), question)


def says(said: str, gold: str, question: str) -> set[str]:
    """What an answer says beyond the question. {"?"} where it speaks of something else than the gold does."""
    subject, predicate = split_at_verb(said)
    gold_subject, _ = split_at_verb(gold)
    if not predicate:
        return content(said, question)
    if ATTRIBUTE.match(plain(question)):  # asked of one thing: whatever it is called, its value decides
        return content(predicate, question)
    about = content(subject, "") - ANYONE
    known = content(gold_subject, "") or content(gold, "")  # "There are two cups": no subject of its own
    if content(gold_subject, question):  # the answer is the subject: "A cat is sitting on the bench."
        known |= content(question, "")
    if about <= known:
        return content(predicate, question) | (content(subject, question) - ANYONE)
    return {"?"} | content(predicate, question)


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
    after = re.sub(r"^(?:(?:to|on|at|in) )?(?:the |a |an )?", "", after)
    after = re.split(r"\b(?:side|of|the|than|to|from|in)\b|[?,]", after)[0].split()
    before = [
        word for word in re.findall(r"[\w'-]+", before) if word not in ("side", "the", "a", "an", "to", "on")
    ]
    chosen = after + before[-len(after) :] if after else []
    return set(words(" ".join(chosen))) - FILLER


def plain(text: str) -> str:
    """Lower case, without wrapping, lead and reasons, in one spelling.

    >>> plain("The answer is: Dark-grey, because of the light.")
    'dark gray'
    """
    text = without_lead(" ".join(unwrap(text).split())).lower()
    text = ADDED.sub("", text).replace("grey", "gray").replace("colour", "color")
    text = re.sub(r"\b(left|right)[- ]hand\b", r"\1", text).replace("-", " ")
    return text.strip(" .")


def words(text: str) -> list[str]:
    """Lower-case words; plurals and possessives without their s, numbers as digits.

    >>> words("the boy's two shoes are glass")
    ['the', 'boy', '2', 'shoe', 'are', 'glass']
    """
    found = []
    for word in re.findall(r"[a-z0-9]+(?:'s)?", text.lower()):
        word = word.removesuffix("'s")
        word = re.sub(r"(?<=[a-z]{2}[^s])s$", "", word)
        found.append(str(NUMBER_WORDS.get(word, word)))
    return found


def split_at_verb(sentence: str) -> tuple[str, str]:
    """Subject and predicate; ("", "") where there is no verb."""
    verb = VERB.search(sentence)
    return (sentence[: verb.start()], sentence[verb.end() :]) if verb else ("", "")
