"""Generates the sample in this repository: zh.jsonl and en.jsonl, spoken requests with an intent and slots.

    python dataset/sample_raw/make_sample.py

Sentences are sampled from the tables below; the output is a pure function of the seed. Every fourth sentence of dev and
test has a phrasing or slot values that do not occur in train (after the `|` in the tables); the others are sampled like
train. The field `slice` distinguishes them, and the report shows scores for both. `{slot}` in a template is replaced by a
value of that slot, tagged B-/I-. To generate a sample for another domain, edit the tables.
"""

import json
import random
import re
from pathlib import Path

SIZES = {"train": 740, "dev": 120, "test": 160}  # sentences per language

ZH_VALUES = {
    "artist": "周深 陈粒 许巍 朴树 李荣浩 毛不易 五月天 王菲 孙燕姿 张震岳 | 逃跑计划 田馥甄 陈绮贞 万能青年旅店 刘若英 草东没有派对",
    "song": "晴朗的早晨 南方姑娘 平凡之路 小幸运 稻香 夜空中最亮的星 Yellow 后来 山丘 | 旅行的意义 董小姐 鼓楼 米店 慢慢喜欢你 Hello",
    "city": "北京 上海 广州 深圳 成都 西安 哈尔滨 昆明 武汉 长沙 | 苏州 兰州 呼和浩特 厦门 拉萨 景德镇",
    "date": "今天 明天 后天 周一 周五 下周三 这个周末 五月一号 十月三日 | 下个月初 周日 大后天 下下周二 八月十五号 元旦",
    "time": "早上七点 晚上八点 中午十二点 七点半 下午三点 九点一刻 | 傍晚六点 凌晨四点 半夜十一点 清晨五点二十 两点四十",
    "dish": "火锅 寿司 披萨 牛肉面 麻辣烫 烤鸭 沙拉 饺子 | 酸菜鱼 汉堡 小龙虾 肠粉 越南粉 煲仔饭",
    "number": "两 三 四 五 八 十五 | 六 七 十二",
    "device": "空调 台灯 电视 加湿器 窗帘 热水器 | 扫地机器人 风扇 投影仪 洗碗机 电热毯",
    "room": "客厅 卧室 厨房 书房 | 阳台 儿童房 地下室",
    "contact": "妈妈 小王 李老师 爸爸 张经理 阿强 | 二姨 刘医生 外婆 赵会计 大师兄",
    "event": "开会 吃药 取快递 交房租 浇花 | 给车加油 健身 接孩子放学 复查牙齿 续签合同",
    "movie": "流浪地球 大话西游 霸王别姬 红高粱 | 千与千寻 卧虎藏龙 疯狂的石头 Inception",
}
ZH_TEMPLATES = {
    "play_music": "播放{artist}的{song} / 我想听{artist}的歌 / 来一首{song} / 放点{artist}的音乐 / 请放{song}这首歌 | 帮我点一首{artist}唱的{song} / 有没有{artist}的作品 放来听听 / 把{song}循环起来 / 用{artist}的声音叫醒我",
    "search_music": "{song}是谁唱的 / {artist}有哪些歌 / 查一下{song}的歌词 / {artist}最新的专辑叫什么 | {song}的作曲是哪位 / {artist}是哪一年出道的 / {song}收录在哪张专辑里",
    "get_weather": "{city}{date}天气怎么样 / {date}{city}会下雨吗 / 查一下{city}的天气 / {date}出门要带伞吗 / {city}{date}多少度 | {date}{city}冷不冷 / 我{date}去{city} 穿什么合适 / {city}那边{date}有没有台风 / {date}适合晒被子吗",
    "book_train": "订一张{date}去{city}的火车票 / 买{number}张{city}到{city}的高铁票 / 我要{date}从{city}去{city}的车票 / 帮我抢{date}{time}到{city}的票 | {date}回{city}的动车给我来{number}张 / {date}{time}左右出发去{city} 帮我买票 / 替{contact}买张到{city}的卧铺",
    "query_train": "{date}去{city}的火车有几趟 / {city}到{city}的高铁多少钱 / {date}最早去{city}的车是几点 / {city}到{city}要坐多久 | 去{city}的末班车几点开 / {date}到{city}还有没有余票 / 从{city}坐火车到{city}方便吗",
    "set_alarm": "定一个{date}{time}的闹钟 / {time}叫我起床 / 设个{time}的闹铃 / {date}{time}叫醒我 | 闹钟调到{time} / {date}得早起 {time}喊我一声 / 午睡到{time}叫我",
    "set_reminder": "{date}{time}提醒我{event} / 记一下{date}要{event} / 别让我忘了{date}{event} / 提醒我{time}{event} | {event}的事{date}再提醒我 / {date}我得{event} 到{time}说一声 / 帮我记着{event}",
    "cancel_alarm": "取消{time}的闹钟 / 把{date}的闹钟关掉 / 删掉{date}{time}的闹铃 | {date}的闹钟不要了 / {date}不用叫我了 / 那个{time}的闹钟作废吧",
    "book_restaurant": "订一家{city}的{dish}店 {number}个人 / {date}{time}帮我订个吃{dish}的位子 / 预约{date}{number}个人的{dish} / 找家{dish}店订{time}的桌 | {date}想吃{dish} 订{number}位 / 我们{number}个人{date}去吃{dish} 留个位 / {time}的{dish}给我占张桌子",
    "control_device": "打开{room}的{device} / 关掉{device} / 把{room}{device}打开 / {time}关{device} / {device}开一下 | {room}的{device}别开了 / 我要睡了 {device}停一下 / {room}太暗 把{device}弄亮点 / 出门了 {room}的{device}都断电",
    "call": "给{contact}打电话 / 呼叫{contact} / 拨通{contact}的手机 / 我要跟{contact}通话 | 找一下{contact} 打过去 / 帮我联系{contact} / {contact}的电话给我接通",
    "watch_movie": "我想看{movie} / 放电影{movie} / 在{room}{device}上放{movie} / 找一部{movie}看看 | 今晚看{movie}吧 / {movie}从头放一遍 / 有没有{movie}的高清版 放一下",
}
EN_VALUES = {
    "artist": "Norah Jones; Radiohead; Nina Simone; Daft Punk; Johnny Cash; Adele; Miles Davis; The Cure | Massive Attack; Bjork; Tom Waits; Portishead; Ella Fitzgerald; Sigur Ros",
    "song": "Yesterday; Blue Monday; So What; Hurt; Purple Rain; Karma Police; Rolling in the Deep | Heroes; Teardrop; Take Five; Wish You Were Here; Landslide; Sunday Morning",
    "city": "Boston; Paris; New York; Berlin; Madrid; San Diego; Oslo; Rome; Chicago | Lisbon; Salt Lake City; Kansas City; Vienna; Buenos Aires; Leeds",
    "date": "today; tomorrow; Monday; next Friday; this weekend; May first; the third of July | Sunday; next month; the day after tomorrow; August fifteenth; Christmas Eve; in two weeks",
    "time": "7 am; 8:30 pm; noon; half past six; three o'clock; 9:15 | midnight; quarter to five; 5:20 in the morning; ten to eleven; 1900 hours",
    "dish": "sushi; pizza; tacos; ramen; steak; pasta; salad | burgers; dumplings; paella; fish and chips; falafel; pho",
    "number": "two; three; four; five; eight; a couple of | six; seven; a dozen",
    "device": "lamp; heater; television; fan; blinds; air conditioner | vacuum; humidifier; projector; dish washer; electric blanket",
    "room": "kitchen; bedroom; living room; office | balcony; nursery; basement; guest room",
    "contact": "mom; Peter; Doctor Lee; dad; my boss; Anna | aunt May; Carlos; grandma; the accountant; Yuki Tanaka",
    "event": "take my pills; pay the rent; water the plants; call the bank | renew my passport; buy milk; pick up the kids; have my teeth checked; return the library books",
    "movie": "Casablanca; The Matrix; Alien; Seven Samurai | Spirited Away; Blade Runner; The Third Man; City of God",
}
EN_TEMPLATES = {
    "play_music": "play {song} by {artist} / i want to listen to {artist} / put on {song} / some music by {artist} please / play the song {song} | could you queue {song} from {artist} / let me hear something from {artist} / {song} on repeat / wake me up with {artist}",
    "search_music": "who sings {song} / what albums does {artist} have / find the lyrics of {song} / what is the latest record of {artist} | who wrote {song} / when did {artist} start out / which album has {song} on it",
    "get_weather": "what is the weather in {city} {date} / will it rain in {city} {date} / weather for {city} / do i need an umbrella {date} / how warm is it in {city} {date} | is it cold in {city} {date} / i am off to {city} {date} what should i wear / any storms near {city} {date} / good day for laundry {date}",
    "book_train": "book a train to {city} {date} / buy {number} tickets from {city} to {city} / i need a train from {city} to {city} {date} / get me the {time} train to {city} | {number} seats back to {city} {date} please / leaving for {city} {date} around {time} get me a seat / a sleeper to {city} for {contact}",
    "query_train": "how many trains go to {city} {date} / how much is a ticket from {city} to {city} / when is the first train to {city} {date} / how long from {city} to {city} | when does the last train to {city} leave / are there seats left to {city} {date} / is it easy to get from {city} to {city} by rail",
    "set_alarm": "set an alarm for {time} {date} / wake me up at {time} / alarm at {time} please / wake me {date} at {time} | move the alarm to {time} / i have to be up at {time} {date} / let me nap until {time}",
    "set_reminder": "remind me to {event} {date} / make a note to {event} at {time} / do not let me forget to {event} {date} / remind me at {time} to {event} | nudge me about it {date} i must {event} / i should {event} {date} tell me at {time} / keep in mind that i have to {event}",
    "cancel_alarm": "cancel the alarm at {time} / turn off the alarm for {date} / delete my {time} alarm | drop the alarm {date} / no need to wake me {date} / forget about that {time} alarm",
    "book_restaurant": "book a table for {number} at a {dish} place in {city} / reserve {dish} {date} at {time} / find a {dish} restaurant for {number} people / table for {number} {date} | we fancy {dish} {date} book for {number} / there are {number} of us for {dish} {date} save a spot / hold me a table at {time} somewhere with {dish}",
    "control_device": "turn on the {device} in the {room} / switch off the {device} / {room} {device} on please / turn off the {device} at {time} / start the {device} | no more {device} in the {room} / i am going to bed stop the {device} / it is dark in the {room} use the {device} / we are leaving cut the {room} {device}",
    "call": "call {contact} / phone {contact} now / dial {contact} please / i want to talk to {contact} | ring {contact} up / get hold of {contact} for me / put me through to {contact}",
    "watch_movie": "i want to watch {movie} / show the movie {movie} / put {movie} on the {device} in the {room} / find {movie} to watch | movie night with {movie} / start {movie} from the beginning / is {movie} available in high definition show it",
}
POLITE = {
    "zh": (["请", "麻烦", "你好 ", "那个 ", "嗯 "], ["谢谢", " 快点", "吧", "好吗", ""]),
    "en": (["please ", "hey ", "ok ", "um ", "could you maybe "], [" thanks", " please", " right now", " if you can"]),
}

TOKEN = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")  # a Chinese character, or a word


def divide(table, separator):
    """Splits 'a b | c d' into {"train": [a, b], "new": [c, d]}."""
    sides = (re.split(separator, side.strip()) for side in table.split("|"))
    return {name: [item.strip() for item in items] for name, items in zip(("train", "new"), sides)}


def make_sentence(language, intent, templates, values, rng, new_wording):
    """Returns (example, whether any wording in it is new). Tokens are characters in Chinese, words in other scripts."""
    drawn_from = set()

    def pick(table, share_of_new):
        side = "new" if rng.random() < share_of_new and new_wording else "train"
        drawn_from.add(side)
        return rng.choice(table[side])

    tokens, tags = [], []
    before, after = (rng.choice(side) if rng.random() < 0.25 else "" for side in POLITE[language])
    for piece in re.split(r"({\w+})", before + pick(templates, 0.3) + after):
        slot = piece[1:-1] if piece.startswith("{") else None
        words = TOKEN.findall(pick(values[slot], 0.25) if slot else piece)
        tokens += words
        tags += [f"{'I' if i else 'B'}-{slot}" if slot else "O" for i in range(len(words))]
    return {"tokens": tokens, "intent": intent, "slots": tags}, "new" in drawn_from


def main(folder=Path(__file__).parent, seed=666):
    for language, templates, values, separator in (
        ("zh", ZH_TEMPLATES, ZH_VALUES, " "),
        ("en", EN_TEMPLATES, EN_VALUES, ";"),
    ):
        rng = random.Random(f"{language}{seed}")
        templates = {intent: divide(table, " / ") for intent, table in templates.items()}
        values = {slot: divide(table, separator) for slot, table in values.items()}
        seen, lines = set(), []
        for split, size in SIZES.items():
            while size:
                new_wording = split != "train" and size % 4 == 0
                intent = rng.choice(list(templates))
                example, is_new = make_sentence(language, intent, templates[intent], values, rng, new_wording)
                if (
                    tuple(example["tokens"]) not in seen and is_new == new_wording
                ):  # sentences are unique over all splits
                    seen.add(tuple(example["tokens"]))
                    if split != "train":
                        example["slice"] = "new wording" if new_wording else "like training"
                    lines.append(json.dumps({"split": split, **example}, ensure_ascii=False))
                    size -= 1
        (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
